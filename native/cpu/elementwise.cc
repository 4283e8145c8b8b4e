// Elementwise ops, activations and their gradients; binary ones broadcast as NumPy does.
#include "../common/calls/elementwise.h"

#include "kernels.h"

namespace lowrank {

namespace {

template <int Op>
void binary(const Args& args) {
  AxisPairs p = broadcastPairs(args);
  Floats a = floats(args, 0), b = floats(args, 1);
  const View& y = args[2];
  if (y.count == 0) return;
  auto f = args.context.isa->binary[Op];
  float* out = y.as<float>();
  int inner = p.rank - 1;
  int64_t n = p.dims[inner], sa = p.a[inner], sb = p.b[inner];
  if (p.rank == 1) {
    args.context.ranges(n, Context::kGrain, [&](int64_t i, int64_t e, int) {
      f(a + i * sa, sa, b + i * sb, sb, out + i, e - i);
    });
    return;
  }
  args.context.rows(y.count / n, n, [&](int64_t from, int64_t to, int) {
    for (int64_t row = from; row < to; row++) {
      int64_t rest = row, atA = 0, atB = 0;
      for (int d = inner - 1; d >= 0; d--) {
        int64_t i = rest % p.dims[d];
        rest /= p.dims[d];
        atA += i * p.a[d];
        atB += i * p.b[d];
      }
      f(a + atA, sa, b + atB, sb, out + row * n, n);
    }
  });
}

template <class F>
void flat(const Args& args, int64_t n, F f) {
  args.context.ranges(n, Context::kGrain,
                      [&](int64_t from, int64_t to, int) { f(from, to - from); });
}

template <int Op>
void unary(const Args& args) {
  args.counts(2, 0);
  args.alike(1, 1);
  Floats x = floats(args, 0);
  float* y = args[1].as<float>();
  auto f = args.context.isa->unary[Op];
  flat(args, args[1].count, [&](int64_t i, int64_t n) { f(x + i, y + i, n); });
}

void gelu(const Args& args) {
  args.counts(2, 1);
  args.alike(1, 1);
  Floats x = floats(args, 0);
  float* y = args[1].as<float>();
  auto f = args.context.isa->unary[args.integer(0, 0, 1) ? kGeluTanh : kGeluErf];
  flat(args, args[1].count, [&](int64_t i, int64_t n) { f(x + i, y + i, n); });
}

void gradient(const Args& args, UnaryGrad op) {
  args.alike(2, 1);
  Floats x = floats(args, 0), dy = floats(args, 1);
  float* dx = args[2].as<float>();
  auto f = args.context.isa->unaryGrad[op];
  flat(args, args[2].count, [&](int64_t i, int64_t n) { f(x + i, dy + i, dx + i, n); });
}

void siluGrad(const Args& args) {
  args.counts(3, 0);
  gradient(args, kSiluGrad);
}

void geluGrad(const Args& args) {
  args.counts(3, 1);
  gradient(args, args.integer(0, 0, 1) ? kGeluTanhGrad : kGeluErfGrad);
}

void affine(const Args& args) {
  args.counts(2, 2);
  args.alike(1, 1);
  Floats x = floats(args, 0);
  float* y = args[1].as<float>();
  float scale = static_cast<float>(args.attrs[0]), shift = static_cast<float>(args.attrs[1]);
  auto f = args.context.isa->affine;
  flat(args, args[1].count, [&](int64_t i, int64_t n) { f(x + i, scale, shift, y + i, n); });
}

void swiglu(const Args& args) {
  args.counts(3, 0);
  args.alike(2, 1);
  Floats gate = floats(args, 0), up = floats(args, 1);
  float* y = args[2].as<float>();
  auto f = args.context.isa->swiglu;
  flat(args, args[2].count, [&](int64_t i, int64_t n) { f(gate + i, up + i, y + i, n); });
}

void swigluGrad(const Args& args) {
  args.counts(5, 0);
  args.alike(3, 2);
  Floats gate = floats(args, 0), up = floats(args, 1), dy = floats(args, 2);
  float* dgate = args[3].as<float>();
  float* dup = args[4].as<float>();
  auto f = args.context.isa->swigluGrad;
  flat(args, args[3].count,
       [&](int64_t i, int64_t n) { f(gate + i, up + i, dy + i, dgate + i, dup + i, n); });
}

// y += x in place.
void accumulate(const Args& args) {
  args.counts(2, 0);
  args.alike(1, 1);
  Floats x = floats(args, 0);
  float* y = args[1].as<float>();
  auto add = args.context.isa->binary[kAdd];
  flat(args, args[1].count, [&](int64_t i, int64_t n) { add(y + i, 1, x + i, 1, y + i, n); });
}

}  // namespace

void registerElementwise(Registry& r) {
  r.push_back({"add", binary<kAdd>});
  r.push_back({"sub", binary<kSub>});
  r.push_back({"mul", binary<kMul>});
  r.push_back({"div", binary<kDiv>});
  r.push_back({"maximum", binary<kMaximum>});
  r.push_back({"minimum", binary<kMinimum>});
  r.push_back({"accumulate", accumulate});
  r.push_back({"affine", affine});
  r.push_back({"neg", unary<kNeg>});
  r.push_back({"abs", unary<kAbs>});
  r.push_back({"exp", unary<kExp>});
  r.push_back({"log", unary<kLog>});
  r.push_back({"sqrt", unary<kSqrt>});
  r.push_back({"rsqrt", unary<kRsqrt>});
  r.push_back({"tanh", unary<kTanh>});
  r.push_back({"sigmoid", unary<kSigmoid>});
  r.push_back({"relu", unary<kRelu>});
  r.push_back({"silu", unary<kSilu>});
  r.push_back({"gelu", gelu});
  r.push_back({"silu.grad", siluGrad});
  r.push_back({"gelu.grad", geluGrad});
  r.push_back({"swiglu", swiglu});
  r.push_back({"swiglu.grad", swigluGrad});
}

}  // namespace lowrank

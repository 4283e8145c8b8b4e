// Elementwise ops, activations and their gradients; binary ones broadcast as NumPy does.
#include "../common/calls/elementwise.h"

#include <algorithm>

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

// f(inputs, outputs, n) over K inputs and then O outputs of one shape, as f32: where they are
// stored in another type, blocks of them pass through the nearest cache. `own`: the output is an
// input, too.
template <size_t K, size_t O, class F>
void maps(const Args& args, F f, bool own = false) {
  constexpr int64_t kBlock = 1024;
  constexpr size_t kAll = K + O;
  args.alike(own ? K - 1 : K, O);
  const View* views[kAll];
  for (size_t i = 0; i < kAll; i++) views[i] = &args[own && i >= K ? i - 1 : i];
  bool wide = true;
  for (const View* v : views) wide = wide && v->dtype == DType::f32;
  const IsaTable& isa = *args.context.isa;
  args.context.ranges(args[0].count, Context::kGrain, [&](int64_t from, int64_t to, int) {
    float blocks[kAll][kBlock];
    const float* in[K];
    float* out[O];
    for (int64_t at = from; at < to; at += wide ? to - from : kBlock) {
      int64_t n = wide ? to - from : std::min(kBlock, to - at);
      for (size_t i = 0; i < kAll; i++) {
        const View& v = *views[i];
        bool stored = v.dtype == DType::f32;
        float* p = stored ? v.as<float>() + at : blocks[i];
        if (i >= K) {
          out[i - K] = p;
          continue;
        }
        in[i] = p;
        const uint16_t* bits = v.as<uint16_t>() + at;
        if (!stored) (v.dtype == DType::f16 ? isa.widenF16 : isa.widenBf16)(bits, p, n);
      }
      f(in, out, n);
      for (size_t o = 0; o < O; o++) {
        const View& y = *views[K + o];
        if (y.dtype != DType::f32) isa.narrowBf16(out[o], y.as<uint16_t>() + at, n);
      }
    }
  });
}

template <class F>
void map1(const Args& args, F f) {
  maps<1, 1>(args, [=](auto& x, auto& y, int64_t n) { f(x[0], y[0], n); });
}

template <int Op>
void unary(const Args& args) {
  args.counts(2, 0);
  map1(args, args.context.isa->unary[Op]);
}

void gelu(const Args& args) {
  args.counts(2, 1);
  map1(args, args.context.isa->unary[args.integer(0, 0, 1) ? kGeluTanh : kGeluErf]);
}

void gradient(const Args& args, UnaryGrad op) {
  auto f = args.context.isa->unaryGrad[op];
  maps<2, 1>(args, [=](auto& x, auto& dx, int64_t n) { f(x[0], x[1], dx[0], n); });
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
  float scale = static_cast<float>(args.attrs[0]), shift = static_cast<float>(args.attrs[1]);
  auto f = args.context.isa->affine;
  map1(args, [=](const float* x, float* y, int64_t n) { f(x, scale, shift, y, n); });
}

void swiglu(const Args& args) {
  args.counts(3, 0);
  auto f = args.context.isa->swiglu;
  maps<2, 1>(args, [=](auto& x, auto& y, int64_t n) { f(x[0], x[1], y[0], n); });
}

void swigluGrad(const Args& args) {
  args.counts(5, 0);
  auto f = args.context.isa->swigluGrad;
  maps<3, 2>(args, [=](auto& x, auto& y, int64_t n) { f(x[0], x[1], x[2], y[0], y[1], n); });
}

// y += x in place.
void accumulate(const Args& args) {
  args.counts(2, 0);
  auto add = args.context.isa->binary[kAdd];
  maps<2, 1>(
      args, [=](auto& x, auto& y, int64_t n) { add(x[1], 1, x[0], 1, y[0], n); }, true);
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

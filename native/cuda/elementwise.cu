// Elementwise ops, activations and their gradients; binary ones broadcast as NumPy does.
#include "../common/calls/elementwise.h"
#include "activations.cuh"
#include "map.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;

// An output's shape and how far each axis moves in a and in b, in elements.
struct Plan {
  int rank;
  Divisor dims[kMaxRank];
  int64_t a[kMaxRank], b[kMaxRank];
};

// Each of the inner axis's strides is 0 or 1. Packed: f32, four elements of the inner axis at once.
template <bool Packed, class F>
__global__ void __launch_bounds__(kThreads)
    broadcastKernel(AnyFloats a, AnyFloats b, float* y, int64_t n, Plan p, F f) {
  constexpr int kEach = Packed ? 4 : 1;
  int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kEach;
  if (i >= n) return;
  int64_t rest = i, atA = 0, atB = 0;
  for (int d = p.rank - 1; d >= 0; d--) {
    int64_t place;
    rest = divide(rest, p.dims[d], place);
    atA += place * p.a[d];
    atB += place * p.b[d];
  }
  if constexpr (Packed) {
    auto take = [&](const AnyFloats& x, int64_t at, int64_t step, float(&v)[4]) {
      if (step) return loadPack(static_cast<const float*>(x.data) + at, v);
      v[0] = v[1] = v[2] = v[3] = static_cast<const float*>(x.data)[at];
    };
    float u[4], v[4], out[4];
    take(a, atA, p.a[p.rank - 1], u);
    take(b, atB, p.b[p.rank - 1], v);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float in[2] = {u[j], v[j]}, one[1];
      f(in, one);
      out[j] = one[0];
    }
    storePack(y + i, out);
  } else {
    float in[2] = {a[atA], b[atB]}, one[1];
    f(in, one);
    y[i] = one[0];
  }
}

// In the order of the table below; each as f(inputs, outputs).
#define PAIR(name, value)                                                                     \
  struct name {                                                                               \
    __device__ __forceinline__ void operator()(const float (&in)[2], float (&out)[1]) const { \
      float a = in[0], b = in[1];                                                             \
      out[0] = value;                                                                         \
    }                                                                                         \
  };
#define MAP(name, value)                                                                      \
  struct name {                                                                               \
    __device__ __forceinline__ void operator()(const float (&in)[1], float (&out)[1]) const { \
      float x = in[0];                                                                        \
      out[0] = value;                                                                         \
    }                                                                                         \
  };

constexpr float kRootHalfOverPi = 0.3989422804014327f;  // 1 / sqrt(2 pi)

PAIR(Add, a + b)
PAIR(Sub, a - b)
PAIR(Mul, a* b)
PAIR(Div, a / b)
PAIR(Maximum, a > b || a != a ? a : b)
PAIR(Minimum, a < b || a != a ? a : b)
MAP(Neg, -x)
MAP(Abs, fabsf(x))
MAP(Exp, expf(x))
MAP(Log, logf(x))
MAP(Sqrt, sqrtf(x))
MAP(Rsqrt, 1.0f / sqrtf(x))
MAP(Tanh, tanhf(x))
MAP(Sigmoid, sigmoidOf(x))
MAP(Relu, reluOf(x))
MAP(Silu, siluOf(x))
MAP(GeluErf, geluErfOf(x))
MAP(GeluTanh, geluTanhOf(x))

struct Affine {
  float scale, shift;
  __device__ __forceinline__ void operator()(const float (&in)[1], float (&out)[1]) const {
    out[0] = scale * in[0] + shift;
  }
};

// dx = dy (s + x s (1 - s)), s = sigmoid(x)
struct SiluGrad {
  __device__ __forceinline__ void operator()(const float (&in)[2], float (&out)[1]) const {
    float x = in[0], s = sigmoidOf(x);
    out[0] = in[1] * (s + x * s * (1.0f - s));
  }
};

// dx = dy (Phi(x) + x phi(x))
struct GeluErfGrad {
  __device__ __forceinline__ void operator()(const float (&in)[2], float (&out)[1]) const {
    float x = in[0], density = kRootHalfOverPi * expf(-0.5f * x * x);
    out[0] = in[1] * (normcdff(x) + x * density);
  }
};

struct GeluTanhGrad {
  __device__ __forceinline__ void operator()(const float (&in)[2], float (&out)[1]) const {
    float x = in[0], s = geluSigmoid(x);
    float t = fminf(fmaxf(x, -100.0f), 100.0f);  // s (1 - s) is 0 beyond; x^2 must not overflow
    float inner = 2.0f * kRootTwoOverPi * (1.0f + 3.0f * kGeluCubic * t * t);
    out[0] = in[1] * (s + x * s * (1.0f - s) * inner);
  }
};

struct Swiglu {
  __device__ __forceinline__ void operator()(const float (&in)[2], float (&out)[1]) const {
    out[0] = swigluOf(in[0], in[1]);
  }
};

// gate, up, dy to dgate, dup
struct SwigluGrad {
  __device__ __forceinline__ void operator()(const float (&in)[3], float (&out)[2]) const {
    float g = in[0], s = sigmoidOf(g), silu = g * s;
    out[0] = in[2] * in[1] * (s + silu * (1.0f - s));
    out[1] = in[2] * silu;
  }
};

// Launchers.

// K inputs, then O outputs, all of one shape.
template <int K, int O, class F>
void mapAll(const CudaArgs& args, F f) {
  Operands<K, O, AnyOut> all;
  args.alike(K, O);
  for (size_t k = 0; k < K; k++) all.x[k] = anyFloats(args, k);
  for (size_t o = 0; o < O; o++) all.y[o] = AnyOut(args[K + o]);
  launchMap(args, all, args[0].count, f);
}

template <int K, int O, class F>
void mapped(const CudaArgs& args) {
  args.counts(K + O, 0);
  mapAll<K, O>(args, F());
}

// Whether four elements along the inner axis lie together in x, or are one.
bool packs(const AnyFloats& x, const int64_t* strides, int inner) {
  if (!x.f32()) return false;
  if (strides[inner] == 0) return true;
  bool ok = aligned(x.data);
  for (int d = 0; d < inner; d++) ok = ok && strides[d] % 4 == 0;
  return ok;
}

template <class F>
void binary(const CudaArgs& args) {
  AxisPairs pairs = broadcastPairs(args);
  AnyFloats a = anyFloats(args, 0), b = anyFloats(args, 1);
  const View& y = args[2];
  if (y.count == 0) return;
  Plan p = {};
  p.rank = pairs.rank;
  for (int d = 0; d < p.rank; d++) {
    p.dims[d] = pairs.dims[d];
    p.a[d] = pairs.a[d];
    p.b[d] = pairs.b[d];
  }
  int inner = p.rank - 1;
  if (inner == 0 && p.a[0] == 1 && p.b[0] == 1) {
    return launchMap(args, Operands<2, 1, AnyOut>{{a, b}, {AnyOut(y)}}, y.count, F());
  }
  dim3 block(kThreads);
  if (p.dims[inner].n % 4 == 0 && aligned(y.data) && packs(a, p.a, inner) && packs(b, p.b, inner)) {
    launch(args, broadcastKernel<true, F>, dim3(blocksFor(y.count, kThreads * 4)), block, 0, a, b,
           y.as<float>(), y.count, p, F());
  } else {
    launch(args, broadcastKernel<false, F>, dim3(blocksFor(y.count, kThreads)), block, 0, a, b,
           y.as<float>(), y.count, p, F());
  }
}

void gelu(const CudaArgs& args) {
  args.counts(2, 1);
  if (args.integer(0, 0, 1)) {
    mapAll<1, 1>(args, GeluTanh());
  } else {
    mapAll<1, 1>(args, GeluErf());
  }
}

void geluGrad(const CudaArgs& args) {
  args.counts(3, 1);
  if (args.integer(0, 0, 1)) {
    mapAll<2, 1>(args, GeluTanhGrad());
  } else {
    mapAll<2, 1>(args, GeluErfGrad());
  }
}

void affine(const CudaArgs& args) {
  args.counts(2, 2);
  mapAll<1, 1>(args, Affine{static_cast<float>(args.attrs[0]), static_cast<float>(args.attrs[1])});
}

// y += x in place.
void accumulate(const CudaArgs& args) {
  args.counts(2, 0);
  args.alike(1, 1);
  AnyFloats x = anyFloats(args, 0);
  const View& y = args[1];
  launchMap(args, Operands<2, 1, AnyOut>{{x, {y.data, y.dtype}}, {AnyOut(y)}}, y.count, Add());
}

}  // namespace

void registerElementwise(CudaRegistry& r) {
  r.push_back({"add", binary<Add>});
  r.push_back({"sub", binary<Sub>});
  r.push_back({"mul", binary<Mul>});
  r.push_back({"div", binary<Div>});
  r.push_back({"maximum", binary<Maximum>});
  r.push_back({"minimum", binary<Minimum>});
  r.push_back({"accumulate", accumulate});
  r.push_back({"affine", affine});
  r.push_back({"neg", mapped<1, 1, Neg>});
  r.push_back({"abs", mapped<1, 1, Abs>});
  r.push_back({"exp", mapped<1, 1, Exp>});
  r.push_back({"log", mapped<1, 1, Log>});
  r.push_back({"sqrt", mapped<1, 1, Sqrt>});
  r.push_back({"rsqrt", mapped<1, 1, Rsqrt>});
  r.push_back({"tanh", mapped<1, 1, Tanh>});
  r.push_back({"sigmoid", mapped<1, 1, Sigmoid>});
  r.push_back({"relu", mapped<1, 1, Relu>});
  r.push_back({"silu", mapped<1, 1, Silu>});
  r.push_back({"gelu", gelu});
  r.push_back({"silu.grad", mapped<2, 1, SiluGrad>});
  r.push_back({"gelu.grad", geluGrad});
  r.push_back({"swiglu", mapped<2, 1, Swiglu>});
  r.push_back({"swiglu.grad", mapped<3, 2, SwigluGrad>});
}

}  // namespace lowrank

// Optimizer steps, in place.
#include <cmath>

#include "../common/calls/optim.h"
#include "map.cuh"

namespace lowrank {

namespace {

// Decoupled weight decay (Loshchilov and Hutter) in the order of PyTorch's AdamW.
struct AdamW {
  float decay, beta1, oneMinusBeta1, beta2, oneMinusBeta2, stepSize, rootCorrection, eps, gradScale;
  // g, p, m, v to p, m, v
  __device__ __forceinline__ void operator()(const float (&in)[4], float (&out)[3]) const {
    float g = in[0] * gradScale;
    float m = in[2] * beta1 + g * oneMinusBeta1;
    float v = in[3] * beta2 + g * g * oneMinusBeta2;
    out[0] = in[1] * decay - stepSize * m / (sqrtf(v) * rootCorrection + eps);
    out[1] = m;
    out[2] = v;
  }
};

struct Sgd : SgdStep {
  // g, p, m to p, m
  __device__ __forceinline__ void operator()(const float (&in)[3], float (&out)[2]) const {
    float d = in[0] * gradScale + decay * in[1];
    float moment = first ? d : momentum * in[2] + d;
    out[0] = in[1] - lr * moment;
    out[1] = moment;
  }
};

constexpr int kTogether = 64;  // parameters of one launch: their addresses fit its arguments

struct Parameters {
  int n;
  unsigned ends[kTogether];  // of each one's blocks, counted through all of them
  int64_t counts[kTogether];
  AnyFloats g[kTogether];
  float *p[kTogether], *m[kTogether], *v[kTogether];
  bool packed[kTogether];
};

__global__ void __launch_bounds__(kMapThreads) adamwEachKernel(Parameters all, AdamW f) {
  int at = 0, past = all.n - 1;  // the block's parameter lies in [at, past]
  while (at < past) {
    int middle = (at + past) / 2;
    if (blockIdx.x < all.ends[middle]) {
      past = middle;
    } else {
      at = middle + 1;
    }
  }
  float *p = all.p[at], *m = all.m[at], *v = all.v[at];
  Operands<4, 3> one = {{all.g[at], {p, DType::f32}, {m, DType::f32}, {v, DType::f32}}, {p, m, v}};
  int64_t begin = static_cast<int64_t>(blockIdx.x - (at > 0 ? all.ends[at - 1] : 0)) * kMapBlock;
  if (all.packed[at]) {
    mapBlock<true>(one, all.counts[at], begin, f);
  } else {
    mapBlock<false>(one, all.counts[at], begin, f);
  }
}

// Launchers.

// A gradient, then K - 1 tensors that are read and written, from tensor `at` on.
template <int K>
Operands<K, K - 1> operandsOf(const CudaArgs& args, size_t at) {
  Operands<K, K - 1> all;
  all.x[0] = anyFloats(args, at);
  for (size_t i = 1; i < K; i++) {
    all.y[i - 1] = args[at + i].as<float>();
    all.x[i] = {all.y[i - 1], DType::f32};
  }
  return all;
}

void adamw(const CudaArgs& args) {
  args.counts(4, 7);
  AdamW s = adamwStep<AdamW>(args);
  launchMap(args, operandsOf<4>(args, 0), args[0].count, s);
}

// g, p, m, v of any number of parameters.
void adamwEach(const CudaArgs& args) {
  AdamW s = adamwStep<AdamW>(args);
  Parameters all = {};
  unsigned blocks = 0;
  for (size_t i = 0; i < args.count; i += 4) {
    Operands<4, 3> one = operandsOf<4>(args, i);
    int at = all.n++;
    blocks += blocksFor(args[i].count, kMapBlock);
    all.ends[at] = blocks;
    all.counts[at] = args[i].count;
    all.g[at] = one.x[0];
    all.p[at] = one.y[0];
    all.m[at] = one.y[1];
    all.v[at] = one.y[2];
    all.packed[at] = packable(one);
    if (all.n < kTogether && i + 4 < args.count) continue;
    if (blocks > 0) launch(args, adamwEachKernel, dim3(blocks), dim3(kMapThreads), 0, all, s);
    all.n = 0;
    blocks = 0;
  }
}

void sgd(const CudaArgs& args) {
  Sgd s = {sgdStep(args)};
  launchMap(args, operandsOf<3>(args, 0), args[0].count, s);
}

}  // namespace

void registerOptim(CudaRegistry& r) {
  r.push_back({"adamw", adamw});
  r.push_back({"adamwEach", adamwEach});
  r.push_back({"sgd", sgd});
}

}  // namespace lowrank

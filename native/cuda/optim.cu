// Optimizer steps, in place, and what clips gradients before them.
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

// What a step's gradients are multiplied by; false where nothing may change.
__device__ __forceinline__ bool clipped(const float* factor, float& gradScale) {
  if (!factor) return true;
  gradScale *= *factor;
  return *factor == *factor;
}

constexpr int kTogether = 64;  // parameters of one launch: their addresses fit its arguments

struct Parameters {
  int n;
  unsigned ends[kTogether];  // of each one's blocks, counted through all of them
  int64_t counts[kTogether];
  AnyFloats g[kTogether];
  float *p[kTogether], *m[kTogether], *v[kTogether];
  bool packed[kTogether];
};

// Which of n tensors a block works for.
__device__ __forceinline__ int tensorOf(const unsigned* ends, int n) {
  int at = 0, past = n - 1;  // it lies in [at, past]
  while (at < past) {
    int middle = (at + past) / 2;
    if (blockIdx.x < ends[middle]) {
      past = middle;
    } else {
      at = middle + 1;
    }
  }
  return at;
}

__global__ void __launch_bounds__(kMapThreads)
    adamwEachKernel(Parameters all, AdamW f, const float* factor) {
  if (!clipped(factor, f.gradScale)) return;
  int at = tensorOf(all.ends, all.n);
  float *p = all.p[at], *m = all.m[at], *v = all.v[at];
  Operands<4, 3> one = {{all.g[at], {p, DType::f32}, {m, DType::f32}, {v, DType::f32}}, {p, m, v}};
  int64_t begin = static_cast<int64_t>(blockIdx.x - (at > 0 ? all.ends[at - 1] : 0)) * kMapBlock;
  if (all.packed[at]) {
    mapBlock<true>(one, all.counts[at], begin, f);
  } else {
    mapBlock<false>(one, all.counts[at], begin, f);
  }
}

template <bool Packed>
__global__ void __launch_bounds__(kMapThreads, 4)
    sgdKernel(Operands<3, 2> all, int64_t n, Sgd f, const float* factor) {
  if (!clipped(factor, f.gradScale)) return;
  mapBlock<Packed>(all, n, static_cast<int64_t>(blockIdx.x) * kMapBlock, f);
}

constexpr int kSquareThreads = 256;
constexpr int64_t kOneBlock = 16384;
constexpr int kSquareBlocks = 1024;  // of a tensor, the same on every card, so that the sum is, too
constexpr int kSquaresTogether = 120;  // tensors of one launch

struct Squares {
  int n;
  unsigned ends[kSquaresTogether];  // as above
  int64_t counts[kSquaresTogether];
  AnyFloats x[kSquaresTogether];
  bool packed[kSquaresTogether];
};

__device__ __forceinline__ double blockSumWide(double v, double* room) {
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = v;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kSquareThreads / kWarp; w++) total += room[w];
  return total;
}

// part of each block, or `whole` of each tensor where all have one block.
__global__ void __launch_bounds__(kSquareThreads)
    squaresKernel(Squares all, double* part, float* whole) {
  SHARED(double, room, [kSquareThreads / kWarp]);
  int at = tensorOf(all.ends, all.n);
  unsigned begin = at > 0 ? all.ends[at - 1] : 0;
  AnyFloats x = all.x[at];
  int64_t n = all.counts[at];
  int64_t first = static_cast<int64_t>(blockIdx.x - begin) * kSquareThreads + threadIdx.x;
  int64_t step = static_cast<int64_t>(all.ends[at] - begin) * kSquareThreads;
  double sum = 0;
  if (all.packed[at]) {
#pragma unroll 4
    for (int64_t i = first; i < n / 4; i += step) {
      float v[4];
      loadPack(static_cast<const float*>(x.data) + i * 4, v);
#pragma unroll
      for (int k = 0; k < 4; k++) sum += static_cast<double>(v[k]) * static_cast<double>(v[k]);
    }
    first += n / 4 * 4;
  }
  for (int64_t i = first; i < n; i += step) {
    double v = x[i];
    sum += v * v;
  }
  sum = blockSumWide(sum, room);
  if (threadIdx.x > 0) return;
  if (part) {
    part[blockIdx.x] = sum;
  } else {
    whole[at] = static_cast<float>(sum);
  }
}

struct Ends {
  unsigned at[kSquaresTogether];
};

// A block for each tensor.
__global__ void __launch_bounds__(kSquareThreads)
    sumPartsKernel(const double* part, Ends ends, float* y) {
  SHARED(double, room, [kSquareThreads / kWarp]);
  unsigned begin = blockIdx.x > 0 ? ends.at[blockIdx.x - 1] : 0;
  double sum = 0;
  for (unsigned i = begin + threadIdx.x; i < ends.at[blockIdx.x]; i += kSquareThreads) {
    sum += part[i];
  }
  sum = blockSumWide(sum, room);
  if (threadIdx.x == 0) y[blockIdx.x] = static_cast<float>(sum);
}

constexpr int kFiniteTogether = 128;

struct Numbers {
  int n;
  AnyFloats at[kFiniteTogether];
};

// By one warp: what brings gradients of these sums of squares to norm `limit` at most, unless that
// is 0, as PyTorch's clip_grad_norm_; NaN where the norm or a number is not finite, or after a
// fault. The sums are added in their order. More: y stays, unless a number makes it NaN.
__global__ void __launch_bounds__(kWarp)
    clipFactorKernel(AnyFloats sums, int64_t n, Numbers numbers, double limit, bool more, float* y,
                     FaultSink sink) {
  int lane = static_cast<int>(threadIdx.x);
  double total = 0;
  for (int64_t i = 0; i < n && !more; i += kWarp) {
    float v = i + lane < n ? sums[i + lane] : 0.0f;
    for (int k = 0; k < kWarp; k++) total += static_cast<double>(__shfl_sync(kAllLanes, v, k));
  }
  double norm = sqrt(total);
  float bad = norm < INFINITY ? 0.0f : 1.0f;
  for (int i = lane; i < numbers.n; i += kWarp) {
    if (!(fabsf(numbers.at[i][0]) < INFINITY)) bad = 1.0f;
  }
  if (lane == 0 && *const_cast<volatile int*>(&sink.fault->claimed) != 0) bad = 1.0f;
  bad = warpMax(bad);
  if (lane > 0) return;
  if (bad > 0) {
    *y = NAN;
  } else if (!more) {
    *y = limit > 0 && norm > limit ? static_cast<float>(limit / (norm + 1e-6)) : 1.0f;
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

void adamwEach(const CudaArgs& args) {
  AdamW s = adamwStep<AdamW>(args);
  size_t first = args.count % 4;
  const float* factor = factorOf(args, first);
  Parameters all = {};
  unsigned blocks = 0;
  for (size_t i = first; i < args.count; i += 4) {
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
    if (blocks > 0)
      launch(args, adamwEachKernel, dim3(blocks), dim3(kMapThreads), 0, all, s, factor);
    all.n = 0;
    blocks = 0;
  }
}

void adamw(const CudaArgs& args) {
  args.counts(args.count == 5 ? 5 : 4, 7);
  adamwEach(args);
}

void sgd(const CudaArgs& args) {
  Sgd s = {sgdStep(args)};
  size_t at = args.count - 3;
  Operands<3, 2> all = operandsOf<3>(args, at);
  int64_t n = args[at].count;
  if (n == 0) return;
  launch(args, packable(all) ? sgdKernel<true> : sgdKernel<false>, dim3(blocksFor(n, kMapBlock)),
         dim3(kMapThreads), 0, all, n, s, factorOf(args, at));
}

// The sums of these tensors to y.
void sumSquaresOf(const CudaArgs& args, const Squares& all, float* y) {
  unsigned blocks = all.ends[all.n - 1];
  // One launch where each tensor has one block: the gradients of LoRA's A and B.
  bool parts = blocks > static_cast<unsigned>(all.n);
  Workspace held(args.device.memory, parts ? uint64_t{blocks} * sizeof(double) : 0);
  double* part = parts ? held.as<double>() : nullptr;
  launch(args, squaresKernel, dim3(blocks), dim3(kSquareThreads), 0, all, part, y);
  if (!parts) return;
  Ends ends = {};
  for (int i = 0; i < all.n; i++) ends.at[i] = all.ends[i];
  launch(args, sumPartsKernel, dim3(static_cast<unsigned>(all.n)), dim3(kSquareThreads), 0, part,
         ends, y);
}

void sumSquares(const CudaArgs& args) {
  size_t count = checkSumSquares(args);
  float* y = args[count].as<float>();
  Squares all = {};
  unsigned blocks = 0;
  for (size_t i = 0; i < count; i++) {
    int64_t n = args[i].count, wish = (n + kSquareThreads * 8 - 1) / (kSquareThreads * 8);
    int at = all.n++;
    blocks += static_cast<unsigned>(n <= kOneBlock         ? 1
                                    : wish < kSquareBlocks ? wish
                                                           : kSquareBlocks);
    all.ends[at] = blocks;
    all.counts[at] = n;
    all.x[at] = anyFloats(args, i);
    all.packed[at] = all.x[at].f32() && aligned(all.x[at].data);
    if (all.n < kSquaresTogether && i + 1 < count) continue;
    sumSquaresOf(args, all, y);
    y += all.n;
    all.n = 0;
    blocks = 0;
  }
}

void clipFactor(const CudaArgs& args) {
  double limit = clipLimit(args);
  size_t last = args.count - 1;
  Numbers numbers = {};
  bool more = false;
  for (size_t i = 1; i <= last; i++) {
    if (i < last) numbers.at[numbers.n++] = anyFloats(args, i);
    if (numbers.n < kFiniteTogether && i < last) continue;
    launch(args, clipFactorKernel, dim3(1), dim3(kWarp), 0, anyFloats(args, 0), args[0].count,
           numbers, limit, more, args[last].as<float>(), args.sink());
    numbers.n = 0;
    more = true;
  }
}

}  // namespace

void registerOptim(CudaRegistry& r) {
  r.push_back({"adamw", adamw});
  r.push_back({"adamwEach", adamwEach});
  r.push_back({"sgd", sgd});
  r.push_back({"sumSquares", sumSquares});
  r.push_back({"clipFactor", clipFactor});
}

}  // namespace lowrank

// Cross-entropy with label smoothing and an ignored label.
#include "../common/calls/rows.h"
#include "rows.cuh"

namespace lowrank {

namespace {

struct Loss {
  int64_t n, v;
  int ignore;
  float smoothing;
  const int* labels;
};

// Whether a row counts; a label that is none is a fault, and its row does not.
__device__ __forceinline__ bool counts(const Loss& l, int64_t row, int lane, FaultSink sink) {
  int label = l.labels[row];
  if (label == l.ignore) return false;
  if (label >= 0 && label < l.v) return true;
  if (lane == 0) report(sink, FaultKind::label, label, l.v);
  return false;
}

// -(1-e) logp[label] - e/V sum logp, with logp = x - max - log sum exp(x - max); plain: the sum of
// x
template <bool Smooth>
__device__ __forceinline__ float lossOf(const Loss& l, float logit, const Top& top, float plain) {
  float logSum = logf(top.sum);
  float value = (1.0f - l.smoothing) * (logSum - (logit - top.max));
  if constexpr (Smooth) {
    value += l.smoothing * (logSum + (top.max - plain / static_cast<float>(l.v)));
  }
  return value;
}

// d (softmax - (1-e) onehot - e/V)
struct Gradient {
  float max, slope, shift, hit;
  __device__ Gradient(const Loss& l, float d, const Top& top)
      : max(top.max),
        slope(d / top.sum),
        shift(d * l.smoothing / static_cast<float>(l.v)),
        hit(d * (1.0f - l.smoothing)) {}
  __device__ __forceinline__ float operator()(float x, bool label) const {
    return expf(x - max) * slope - shift - (label ? hit : 0.0f);
  }
};

template <int kLanes, bool Smooth, class T>
__global__ void __launch_bounds__(Lanes<kLanes>::kThreads)
    crossEntropyKernel(const T* x, Loss l, float* loss, FaultSink sink) {
  using R = Lanes<kLanes>;
  SHARED(Top, room, [R::kWarps]);
  SHARED(float, sums, [R::kWarps]);
  int64_t row = R::row();
  if (row >= l.n) return;
  if (!counts(l, row, R::lane(), sink)) {
    if (R::lane() == 0) loss[row] = 0;
    return;
  }
  x += row * l.v;
  float plain = 0;
  Top top = topOf<kLanes>(x, l.v, room, Smooth ? &plain : nullptr);
  if constexpr (Smooth) plain = R::sum(plain, sums);
  if (R::lane() == 0) loss[row] = lossOf<Smooth>(l, widen(x[l.labels[row]]), top, plain);
}

// dx may be x
template <int kLanes, class T>
__global__ void __launch_bounds__(Lanes<kLanes>::kThreads)
    crossEntropyGradKernel(const T* x, Loss l, AnyFloats dloss, float* dx, FaultSink sink) {
  using R = Lanes<kLanes>;
  SHARED(Top, room, [R::kWarps]);
  int64_t row = R::row();
  if (row >= l.n) return;
  float* out = dx + row * l.v;
  if (!counts(l, row, R::lane(), sink)) {
    for (int64_t i = R::lane(); i < l.v; i += kLanes) out[i] = 0;
    return;
  }
  x += row * l.v;
  Top top = topOf<kLanes>(x, l.v, room);
  Gradient gradient(l, dloss[row], top);
  int label = l.labels[row];
  for (int64_t i = R::lane(); i < l.v; i += 4 * kLanes) {
    float v[4];
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = i + k * kLanes < l.v ? widen(x[i + k * kLanes]) : 0.0f;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      int64_t at = i + k * kLanes;
      float g = gradient(v[k], at == label);
      if (at < l.v) out[at] = g;
    }
  }
}

// The logits become their gradient. The first `kept` of a row stay in shared memory; the rest is
// read again from its end, of which the caches still have most.
template <int kLanes, bool Smooth>
__global__ void __launch_bounds__(Lanes<kLanes>::kThreads)
    crossEntropyWithGradKernel(float* x, Loss l, float d, int kept, float* loss, FaultSink sink) {
  using R = Lanes<kLanes>;
  SHARED(Top, room, [R::kWarps]);
  SHARED(float, sums, [R::kWarps]);
  DYNAMIC_SHARED(float, keep);
  int64_t row = R::row();
  if (row >= l.n) return;
  x += row * l.v;
  if (!counts(l, row, R::lane(), sink)) {
    for (int64_t i = R::lane(); i < l.v; i += kLanes) x[i] = 0;
    if (R::lane() == 0) loss[row] = 0;
    return;
  }
  float plain = 0;
  Top top = topOf<kLanes>(x, l.v, room, Smooth ? &plain : nullptr, keep, kept);
  if constexpr (Smooth) plain = R::sum(plain, sums);
  int label = l.labels[row];
  // By the thread that will write the gradient there.
  if (R::lane() == label % kLanes) loss[row] = lossOf<Smooth>(l, x[label], top, plain);
  Gradient gradient(l, d, top);
  constexpr int64_t kEach = 4 * kLanes;
  for (int64_t i = (l.v - 1) / kEach * kEach + R::lane(); i >= 0; i -= kEach) {
    float v[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      int64_t at = i + k * kLanes;
      v[k] = at >= l.v ? 0.0f : at < kept ? keep[at] : x[at];
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
      int64_t at = i + k * kLanes;
      float g = gradient(v[k], at == label);
      if (at < l.v) x[at] = g;
    }
  }
}

// Launchers.

Loss lossRowsOf(const LossRows& r) {
  return {r.n, r.v, static_cast<int>(r.ignore), static_cast<float>(r.smoothing), r.labels};
}

void crossEntropy(const CudaArgs& args) {
  LossRows rows = lossRows(args, false);
  Loss l = lossRowsOf(rows);
  const View& x = args[0];
  if (l.n == 0) return;
  byFloat(x.dtype, [&](auto type) {
    using T = decltype(type);
    byLanes(l.v, [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::value;
      dim3 grid(blocksFor(l.n, Lanes<kLanes>::kPerBlock)), block(Lanes<kLanes>::kThreads);
      auto kernel = l.smoothing > 0 ? crossEntropyKernel<kLanes, true, T>
                                    : crossEntropyKernel<kLanes, false, T>;
      launch(args, kernel, grid, block, 0, x.as<T>(), l, rows.out, args.sink());
    });
  });
}

void crossEntropyGrad(const CudaArgs& args) {
  LossRows rows = lossRows(args, true);
  Loss l = lossRowsOf(rows);
  const View& x = args[0];
  AnyFloats dloss = anyFloats(args, 2);
  if (x.count == 0) return;
  byFloat(x.dtype, [&](auto type) {
    using T = decltype(type);
    byLanes(l.v, [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::value;
      launch(args, crossEntropyGradKernel<kLanes, T>,
             dim3(blocksFor(l.n, Lanes<kLanes>::kPerBlock)), dim3(Lanes<kLanes>::kThreads), 0,
             x.as<T>(), l, dloss, rows.out, args.sink());
    });
  });
}

void crossEntropyWithGrad(const CudaArgs& args) {
  LossAndGrad both = lossAndGrad(args);
  Loss l = lossRowsOf(both.rows);
  if (l.n == 0) return;
  byLanes(l.v, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    // Rows of fewer threads are short enough for the caches. What is not dynamic is below 1 KiB.
    int64_t room = static_cast<int64_t>(args.device.sharedPerBlock / 4) - 256;
    int64_t kept = kLanes < 1024 ? 0 : l.v < room ? l.v : room;
    dim3 grid(blocksFor(l.n, Lanes<kLanes>::kPerBlock)), block(Lanes<kLanes>::kThreads);
    auto kernel = l.smoothing > 0 ? crossEntropyWithGradKernel<kLanes, true>
                                  : crossEntropyWithGradKernel<kLanes, false>;
    launch(args, kernel, grid, block, static_cast<size_t>(kept) * 4, both.rows.out, l, both.factor,
           static_cast<int>(kept), both.loss, args.sink());
  });
}

}  // namespace

void registerLoss(CudaRegistry& r) {
  r.push_back({"crossEntropy", crossEntropy});
  r.push_back({"crossEntropy.grad", crossEntropyGrad});
  r.push_back({"crossEntropy.withGrad", crossEntropyWithGrad});
}

}  // namespace lowrank

// What the kernels over rows share: kLanes threads of a block have a row.
#pragma once

#include <type_traits>

#include "pack.cuh"

namespace lowrank {

template <int kLanes>
struct Lanes {
  static constexpr int kThreads = kLanes < 256 ? 256 : kLanes;
  static constexpr int kPerBlock = kThreads / kLanes;
  static constexpr int kWarps = kThreads / kWarp;

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  static __device__ __forceinline__ int64_t row() {
    return static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x / kLanes;
  }
  // Over the row's threads, in each of them; `room` has a place for each warp and is free again
  // after the next barrier.
  static __device__ __forceinline__ float sum(float x, float* room) {
    float v[1] = {x};
    if constexpr (kLanes == kWarp) return warpSum(x);
    blockSum(v, room);
    return v[0];
  }
};

// f(std::integral_constant<int, threads>) with the threads that suit a row of n.
template <class F>
void byLanes(int64_t n, F&& f) {
  if (n <= 1024) return f(std::integral_constant<int, 32>());
  if (n <= 8192) return f(std::integral_constant<int, 256>());
  return f(std::integral_constant<int, 1024>());
}

// The largest of some numbers (NaN is passed over), and the sum of exp(x - max), which a NaN or an
// infinity makes NaN.
struct Top {
  float max, sum;
};

__device__ __forceinline__ float expBelow(float x, float max) {
  return x == -INFINITY && max == -INFINITY ? 0.0f : expf(x - max);
}
__device__ __forceinline__ Top joined(const Top& a, const Top& b) {
  float max = fmaxf(a.max, b.max);
  float left = a.max == max ? a.sum : a.sum * expf(a.max - max);
  float right = b.max == max ? b.sum : b.sum * expf(b.max - max);
  return {max, left + right};
}

__device__ __forceinline__ Top joinedWarp(Top top) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    top = joined(top, {__shfl_xor_sync(kAllLanes, top.max, step),
                       __shfl_xor_sync(kAllLanes, top.sum, step)});
  }
  return top;
}

__device__ __forceinline__ void joinFour(Top& top, const float* v) {
  float max = fmaxf(fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3])), top.max);
  top.sum = top.max == max ? top.sum : top.sum * expf(top.max - max);
  top.max = max;
  top.sum +=
      (expBelow(v[0], max) + expBelow(v[1], max)) + (expBelow(v[2], max) + expBelow(v[3], max));
}

// Of a row of n by its threads, in one pass; in each of them. `plain`, unless null, becomes this
// thread's part of the sum of x. The first `kept` elements are left in `keep`, each by the thread
// that will find it there.
template <int kLanes, class T>
__device__ __forceinline__ Top topOf(const T* x, int64_t n, Top* room, float* plain = nullptr,
                                     float* keep = nullptr, int kept = 0) {
  Top top = {-INFINITY, 0.0f};
  float total = 0;
  int64_t i = Lanes<kLanes>::lane();
  // Eight are on their way at once; they are added as four and four.
  for (; i + 7 * kLanes < n; i += 8 * kLanes) {
    float v[8];
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] = widen(x[i + k * kLanes]);
#pragma unroll
    for (int k = 0; k < 8; k++) {
      if (plain) total += v[k];
      if (keep && i + k * kLanes < kept) keep[i + k * kLanes] = v[k];
    }
    joinFour(top, v);
    joinFour(top, v + 4);
  }
  for (; i < n; i += 4 * kLanes) {
    float v[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      int64_t at = i + k * kLanes;
      v[k] = at < n ? widen(x[at]) : -INFINITY;
      if (plain && at < n) total += v[k];
      if (keep && at < n && at < kept) keep[at] = v[k];
    }
    joinFour(top, v);
  }
  if (plain) *plain = total;
  top = joinedWarp(top);
  if constexpr (kLanes > kWarp) {
    int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (lane == 0) room[threadIdx.x / kWarp] = top;
    __syncthreads();
    top = joinedWarp(lane < Lanes<kLanes>::kWarps ? room[lane] : Top{-INFINITY, 0.0f});
  }
  return top;
}

}  // namespace lowrank

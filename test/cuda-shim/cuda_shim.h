// CUDA's device language on a processor, to test the logic of kernels: each thread of a block is a
// fiber; one block runs after the other. A barrier hands over to the next thread, so that a race
// gives other results in another order of threads (LOWRANK_SHIM_ORDER: forward, reverse or
// shuffled). Shared memory begins as NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cuda_fp16.h"
#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// What CUDA checks of a launch.
cudaError_t cudaShimLaunch(dim3 grid, dim3 block, size_t shared);
// Does the work now, or keeps it in the graph that the stream captures.
void cudaShimEnqueue(cudaStream_t stream, std::function<void()> work);

namespace shim {

struct Place {
  uint3 thread, block;
  dim3 blockSize, gridSize;
  int rank;  // of the thread in its block
};
// Of the thread that runs.
extern const Place* here;

// Runs body once for every thread of every block; throws if the threads of a block do not meet.
void launch(dim3 grid, dim3 block, size_t sharedBytes, const std::function<void()>& body);
// Waits for every thread of the block that has not returned.
void barrier();
// Sums `flag` over the block, as __syncthreads_count.
int barrierCount(int flag);
// Gives `bytes` at `value` to the warp's other lanes of `mask`, and answers the array of all 32
// lanes' values, 16 bytes apart, once each has given its own.
const char* exchange(unsigned mask, const void* value, size_t bytes);
// Shared memory of the block by the place in the source that declares it.
void* shared(const void* site, size_t bytes);
void* dynamicShared();

template <class T>
T lane(unsigned mask, T value, int from) {
  static_assert(sizeof(T) <= 16, "a value of a register or a few");
  const char* all = exchange(mask, &value, sizeof value);
  T result;
  std::memcpy(&result, all + static_cast<size_t>(from & 31) * 16, sizeof result);
  return result;
}
inline int laneOf() { return here->rank % 32; }

}  // namespace shim

#define threadIdx (shim::here->thread)
#define blockIdx (shim::here->block)
#define blockDim (shim::here->blockSize)
#define gridDim (shim::here->gridSize)
constexpr int warpSize = 32;

#define SHARED(type, name, dims)    \
  static const char name##Site = 0; \
  using name##Type = type dims;     \
  name##Type& name = *static_cast<name##Type*>(shim::shared(&name##Site, sizeof(name##Type)))
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(shim::dynamicShared())

inline void __syncthreads() { shim::barrier(); }
inline int __syncthreads_count(int flag) { return shim::barrierCount(flag != 0); }
inline int __syncthreads_or(int flag) { return shim::barrierCount(flag != 0) > 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::lane(mask, 0, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

template <class T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  int lane = shim::laneOf();
  return shim::lane(mask, v, lane / width * width + from % width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
  int lane = shim::laneOf(), from = lane ^ with;
  return shim::lane(mask, v, from / width == lane / width ? from : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  int lane = shim::laneOf(), from = lane + static_cast<int>(by);
  return shim::lane(mask, v, from / width == lane / width ? from : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  int lane = shim::laneOf(), from = lane - static_cast<int>(by);
  return shim::lane(mask, v, from >= lane / width * width ? from : lane);
}
inline unsigned __ballot_sync(unsigned mask, int flag) {
  int value = flag != 0;
  const char* all = shim::exchange(mask, &value, sizeof value);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++) {
    int v;
    std::memcpy(&v, all + i * 16, sizeof v);
    if ((mask >> i & 1) && v) bits |= 1u << i;
  }
  return bits;
}
inline int __any_sync(unsigned mask, int flag) { return __ballot_sync(mask, flag) != 0; }
inline int __all_sync(unsigned mask, int flag) { return __ballot_sync(mask, flag) == mask; }

// One thread at a time runs, so plain reads and writes are atomic.
template <class T>
T atomicAdd(T* at, T v) {
  T old = *at;
  *at = old + v;
  return old;
}
template <class T>
T atomicMax(T* at, T v) {
  T old = *at;
  *at = std::max(old, v);
  return old;
}
template <class T>
T atomicExch(T* at, T v) {
  T old = *at;
  *at = v;
  return old;
}
template <class T>
T atomicOr(T* at, T v) {
  T old = *at;
  *at = old | v;
  return old;
}
template <class T>
T atomicCAS(T* at, T expected, T v) {
  T old = *at;
  if (old == expected) *at = v;
  return old;
}

inline float __uint_as_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int i) { return __uint_as_float(static_cast<uint32_t>(i)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float normcdff(float x) { return 0.5f * std::erfc(x * -0.70710678118654752f); }
inline float __expf(float x) { return std::exp(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
template <class T>
T __ldg(const T* at) {
  return *at;
}
using std::max;
using std::min;

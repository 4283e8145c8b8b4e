// What the kernels of memory-bound ops share: several elements at a time, inputs whose type is
// known at run time only, places in a shape, and sums over a block.
#pragma once

#include "device.h"

namespace lowrank {

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// Four elements at an address that is a multiple of their size together.
template <class T>
__device__ __forceinline__ void loadPack(const T* at, float (&v)[4]) {
  Pack<T, 4> p = *reinterpret_cast<const Pack<T, 4>*>(at);
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = widen(p.v[i]);
}
template <class T>
__device__ __forceinline__ void storePack(T* at, const float (&v)[4]) {
  Pack<T, 4> p;
#pragma unroll
  for (int i = 0; i < 4; i++) p.v[i] = narrow<T>(v[i]);
  *reinterpret_cast<Pack<T, 4>*>(at) = p;
}

// A floating tensor of any type, read one element at a time; the type is the launch's.
struct AnyFloats {
  const void* data;
  DType type;
  __device__ __forceinline__ float operator[](int64_t i) const {
    if (type == DType::f32) return static_cast<const float*>(data)[i];
    if (type == DType::bf16) return widen(static_cast<const Bf16*>(data)[i]);
    return widen(static_cast<const F16*>(data)[i]);
  }
  // Four of them; the address of the first is a multiple of four elements.
  __device__ __forceinline__ void four(int64_t i, float (&v)[4]) const {
    if (type == DType::f32) {
      loadPack(static_cast<const float*>(data) + i, v);
    } else if (type == DType::bf16) {
      loadPack(static_cast<const Bf16*>(data) + i, v);
    } else {
      loadPack(static_cast<const F16*>(data) + i, v);
    }
  }
  bool f32() const { return type == DType::f32; }
  // Whether four() may start at every fourth element.
  bool packs() const { return reinterpret_cast<uintptr_t>(data) % (4 * dtypeSize(type)) == 0; }
};

// Tensor i of f32, f16 or bf16.
inline AnyFloats anyFloats(const CudaArgs& args, size_t i) {
  const View& v = args.floating(i);
  return {v.data, v.dtype};
}

inline bool aligned(const void* data, size_t to = 16) {
  return reinterpret_cast<uintptr_t>(data) % to == 0;
}

// A number to divide by: multiplication by its inverse, ceil(2^(63 + shift) / n) with 2^shift >= n,
// is exact for 0 <= i < 2^63 (Granlund and Montgomery 1994), and far cheaper than a division.
struct Divisor {
  int64_t n = 1;
  uint64_t inverse = uint64_t{1} << 63;
  int shift = 0;
  Divisor() = default;
  Divisor(int64_t by) : n(by) {
    while ((int64_t{1} << shift) < by) shift++;
    unsigned __int128 power = static_cast<unsigned __int128>(1) << (63 + shift);
    unsigned __int128 d = static_cast<unsigned __int128>(by);
    if (by > 0) inverse = static_cast<uint64_t>((power + d - 1) / d);
  }
};

// i / d, with the rest in `rest`.
__device__ __forceinline__ int64_t divide(int64_t i, const Divisor& d, int64_t& rest) {
  uint64_t q = __umul64hi(static_cast<uint64_t>(i) * 2, d.inverse) >> d.shift;
  rest = i - static_cast<int64_t>(q) * d.n;
  return static_cast<int64_t>(q);
}

// Axes of a tensor, in order, and how far each moves, in elements.
struct Axes {
  int rank;
  Divisor dims[kMaxRank];
  int64_t steps[kMaxRank];
};

// Where the index-th element of these axes lies.
__device__ __forceinline__ int64_t placeOf(int64_t index, const Axes& a) {
  int64_t at = 0;
  for (int d = a.rank - 1; d > 0; d--) {
    int64_t i;
    index = divide(index, a.dims[d], i);
    at += i * a.steps[d];
  }
  return a.rank > 0 ? at + index * a.steps[0] : at;
}

// Sums of several values over the threads of a block (a whole number of warps along x, at most
// 1024), in every thread; in one fixed order. `room` holds N floats a warp, and is free again after
// the next barrier.
template <int N>
__device__ __forceinline__ void blockSum(float (&v)[N], float* room) {
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = warpSum(v[i]);
  int warps = static_cast<int>(blockDim.x) / kWarp;
  if (warps == 1) return;
  int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < N; i++) room[warp * N + i] = v[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = warpSum(lane < warps ? room[lane * N + i] : 0.0f);
}

}  // namespace lowrank

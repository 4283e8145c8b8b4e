// What device code is written with: CUDA's own words, and the few below that the test's shim gives
// another meaning, so that the same kernels run on a processor.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "context.h"

#ifdef __CUDACC__

// SHARED(float, tile, [16][17]): an array of the block's shared memory, 16-byte aligned.
#define SHARED(type, name, dims) __shared__ __align__(16) type name dims
// The launch's dynamic shared memory as an array of `type`.
#define DYNAMIC_SHARED(type, name)                               \
  extern __shared__ __align__(16) unsigned char lowrankShared[]; \
  type* name = reinterpret_cast<type*>(lowrankShared)

namespace lowrank {

// Runs `kernel` on the stream; throws what CUDA says about the launch.
template <class... P, class... A>
void launch(const CudaArgs& args, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
            A... a) {
  if (shared > 48 * 1024) {
    cudaCheck(args.kernel, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                static_cast<int>(shared)));
  }
  kernel<<<grid, block, shared, args.device.stream>>>(static_cast<P>(a)...);
  cudaCheck(args.kernel, cudaGetLastError());
}

}  // namespace lowrank

#else
#include <cuda_shim.h>

namespace lowrank {

template <class... P, class... A>
void launch(const CudaArgs& args, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
            A... a) {
  cudaCheck(args.kernel, cudaShimLaunch(grid, block, shared));
  cudaShimEnqueue(args.device.stream, [=] {
    shim::launch(grid, block, shared, [=] { kernel(static_cast<P>(a)...); });
  });
}

}  // namespace lowrank

#endif

namespace lowrank {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// bf16 and f16 as they are stored; widened exactly, narrowed to nearest even.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(Bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float widen(F16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ Bf16 narrow<Bf16>(float x) {
  uint32_t u = __float_as_uint(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}
template <>
__device__ __forceinline__ F16 narrow<F16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// An output of activations, of f32 or bf16; the type is the launch's.
struct AnyOut {
  void* data;
  DType type;
  AnyOut() = default;
  explicit AnyOut(float* floats) : data(floats), type(DType::f32) {}
  explicit AnyOut(const View& view) : data(view.data), type(view.dtype) {}
  __device__ AnyOut(void* data, DType type) : data(data), type(type) {}

  // The same from element i on.
  __device__ __forceinline__ AnyOut from(int64_t i) const {
    return {static_cast<char*>(data) + i * (type == DType::f32 ? 4 : 2), type};
  }
  __device__ __forceinline__ float operator[](int64_t i) const {
    if (type == DType::f32) return static_cast<const float*>(data)[i];
    return widen(static_cast<const Bf16*>(data)[i]);
  }
  __device__ __forceinline__ void set(int64_t i, float value) const {
    if (type == DType::f32) {
      static_cast<float*>(data)[i] = value;
    } else {
      static_cast<Bf16*>(data)[i] = narrow<Bf16>(value);
    }
  }
  // Two, or four, of them; the address of the first is a multiple of as many elements.
  __device__ __forceinline__ void two(int64_t i, float a, float b) const {
    if (type == DType::f32) {
      *reinterpret_cast<float2*>(static_cast<float*>(data) + i) = make_float2(a, b);
    } else {
      *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(data) + i) =
          narrow<Bf16>(a).bits | static_cast<uint32_t>(narrow<Bf16>(b).bits) << 16;
    }
  }
  __device__ __forceinline__ void four(int64_t i, const float (&v)[4]) const {
    if (type == DType::f32) {
      *reinterpret_cast<float4*>(static_cast<float*>(data) + i) =
          make_float4(v[0], v[1], v[2], v[3]);
    } else {
      uint2 pairs;
      pairs.x = narrow<Bf16>(v[0]).bits | static_cast<uint32_t>(narrow<Bf16>(v[1]).bits) << 16;
      pairs.y = narrow<Bf16>(v[2]).bits | static_cast<uint32_t>(narrow<Bf16>(v[3]).bits) << 16;
      *reinterpret_cast<uint2*>(static_cast<Bf16*>(data) + i) = pairs;
    }
  }
  // Whether four() may start at every fourth element.
  bool packs() const { return reinterpret_cast<uintptr_t>(data) % (4 * dtypeSize(type)) == 0; }
};

// f(T{}) for the floating type behind a dtype code; the caller has checked that it is one.
template <class F>
void byFloat(DType dtype, F&& f) {
  if (dtype == DType::bf16) {
    f(Bf16{});
  } else if (dtype == DType::f16) {
    f(F16{});
  } else {
    f(float{});
  }
}

// Sum, or largest, over the lanes of a warp, in every lane; in one fixed order.
__device__ __forceinline__ float warpSum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
__device__ __forceinline__ float warpMax(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  }
  return x;
}

// Records the first fault of a kernel; the kernel goes on with something harmless.
__device__ inline void report(FaultSink sink, FaultKind kind, int64_t value, int64_t limit) {
  if (atomicCAS(&sink.fault->claimed, 0, 1) != 0) return;
  sink.fault->kind = static_cast<int>(kind);
  sink.fault->value = value;
  sink.fault->limit = limit;
  __threadfence_system();
  *const_cast<volatile int*>(&sink.fault->kernel) = sink.kernel + 1;
}

// Blocks for n items, `each` of them a block.
inline unsigned blocksFor(int64_t n, int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

}  // namespace lowrank

// Conversion between dtypes: to nearest even among floats, truncation to integers.
#include <type_traits>

#include "pack.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;
constexpr int kEach = 4;

// Four neighbours at once, of floating types at multiples of four elements.
template <class From, class To>
__global__ void __launch_bounds__(kThreads) castPackKernel(const From* x, To* y, int64_t n) {
  int64_t begin = static_cast<int64_t>(blockIdx.x) * kThreads * kEach * 2;
#pragma unroll
  for (int p = 0; p < 2; p++) {
    int64_t i = begin + (p * kThreads + threadIdx.x) * kEach;
    if (i + kEach <= n) {
      float v[4];
      loadPack(x + i, v);
      storePack(y + i, v);
    } else {
      for (; i < n; i++) y[i] = narrow<To>(widen(x[i]));
    }
  }
}

// Out of range goes to the nearest end, NaN to 0.
template <class T>
__device__ __forceinline__ T truncated(float x, T least, T most) {
  if (x != x) return 0;
  if (x <= static_cast<float>(least)) return least;
  if (x >= static_cast<float>(most)) return most;
  return static_cast<T>(x);
}

__device__ __forceinline__ bool isInteger(DType t) {
  return t == DType::i32 || t == DType::i64 || t == DType::u8 || t == DType::boolean;
}

__device__ int64_t integerAt(const void* x, DType t, int64_t i) {
  if (t == DType::i32) return static_cast<const int32_t*>(x)[i];
  if (t == DType::i64) return static_cast<const int64_t*>(x)[i];
  return static_cast<const uint8_t*>(x)[i];
}

__device__ float floatAt(const void* x, DType t, int64_t i) {
  if (t == DType::f64) return static_cast<float>(static_cast<const double*>(x)[i]);
  if (isInteger(t)) return static_cast<float>(integerAt(x, t, i));
  return AnyFloats{x, t}[i];
}

__device__ void storeFloat(void* y, DType t, int64_t i, float v) {
  if (t == DType::f32) {
    static_cast<float*>(y)[i] = v;
  } else if (t == DType::f16) {
    static_cast<F16*>(y)[i] = narrow<F16>(v);
  } else if (t == DType::bf16) {
    static_cast<Bf16*>(y)[i] = narrow<Bf16>(v);
  } else if (t == DType::f64) {
    static_cast<double*>(y)[i] = v;
  } else if (t == DType::i32) {
    static_cast<int32_t*>(y)[i] = truncated<int32_t>(v, INT32_MIN, INT32_MAX);
  } else if (t == DType::i64) {
    static_cast<int64_t*>(y)[i] = truncated<int64_t>(v, INT64_MIN, INT64_MAX);
  } else if (t == DType::u8) {
    static_cast<uint8_t*>(y)[i] = truncated<uint8_t>(v, 0, UINT8_MAX);
  } else {
    static_cast<uint8_t*>(y)[i] = v != 0;
  }
}

// Between integers the low bits are kept, as in two's complement.
__device__ void storeInteger(void* y, DType t, int64_t i, int64_t v) {
  if (t == DType::i32) {
    static_cast<uint32_t*>(y)[i] = static_cast<uint32_t>(static_cast<uint64_t>(v));
  } else if (t == DType::i64) {
    static_cast<int64_t*>(y)[i] = v;
  } else if (t == DType::u8) {
    static_cast<uint8_t*>(y)[i] = static_cast<uint8_t>(v);
  } else {
    static_cast<uint8_t*>(y)[i] = v != 0;
  }
}

// Any types; they are the same for the whole launch.
__global__ void __launch_bounds__(kThreads)
    castKernel(const void* x, DType from, void* y, DType to, int64_t n) {
  int64_t begin = static_cast<int64_t>(blockIdx.x) * kThreads * kEach + threadIdx.x;
  for (int k = 0; k < kEach; k++) {
    int64_t i = begin + k * kThreads;
    if (i >= n) return;
    if (isInteger(from) && isInteger(to)) {
      storeInteger(y, to, i, integerAt(x, from, i));
    } else {
      storeFloat(y, to, i, floatAt(x, from, i));
    }
  }
}

// Launcher.

void cast(const CudaArgs& args) {
  args.counts(2, 0);
  args.sameShape(0, 1);
  const View &x = args[0], &y = args.writable(1);
  if (x.count == 0) return;
  if (x.dtype == y.dtype) {
    cudaCheck(args.kernel, cudaMemcpyAsync(y.data, x.data, x.bytes(), cudaMemcpyDeviceToDevice,
                                           args.device.stream));
    return;
  }
  bool packed = isFloat(x.dtype) && isFloat(y.dtype) && aligned(x.data, 4 * dtypeSize(x.dtype)) &&
                aligned(y.data, 4 * dtypeSize(y.dtype));
  if (!packed) {
    launch(args, castKernel, dim3(blocksFor(x.count, kThreads * kEach)), dim3(kThreads), 0, x.data,
           x.dtype, y.data, y.dtype, x.count);
    return;
  }
  byFloat(x.dtype, [&](auto from) {
    byFloat(y.dtype, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      if constexpr (!std::is_same_v<From, To>) {
        launch(args, castPackKernel<From, To>, dim3(blocksFor(x.count, kThreads * kEach * 2)),
               dim3(kThreads), 0, x.as<From>(), y.as<To>(), x.count);
      }
    });
  });
}

}  // namespace

void registerCast(CudaRegistry& r) { r.push_back({"cast", cast}); }

}  // namespace lowrank

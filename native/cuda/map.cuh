// One function applied to every element of tensors of one shape.
#pragma once

#include <type_traits>

#include "pack.cuh"

namespace lowrank {

constexpr int kMapThreads = 256;
constexpr int kMapPacks = 2;  // of four elements, of each thread
constexpr int kMapBlock = kMapThreads * kMapPacks * 4;

// K inputs and O outputs of one shape; Y is float*, or AnyOut where an output may be bf16.
template <int K, int O, class Y = float*>
struct Operands {
  AnyFloats x[K];
  Y y[O];
};

__device__ __forceinline__ void storeFour(float* y, int64_t i, const float (&v)[4]) {
  storePack(y + i, v);
}
__device__ __forceinline__ void storeFour(const AnyOut& y, int64_t i, const float (&v)[4]) {
  y.four(i, v);
}
__device__ __forceinline__ void storeOne(float* y, int64_t i, float v) { y[i] = v; }
__device__ __forceinline__ void storeOne(const AnyOut& y, int64_t i, float v) { y.set(i, v); }

// y = f(x), element by element, for kMapBlock of them from `begin`, by a block. Packed: addresses
// are multiples of four elements, which float* outputs need of f32 inputs alone.
template <bool Packed, int K, int O, class Y, class F>
__device__ __forceinline__ void mapBlock(const Operands<K, O, Y>& all, int64_t n, int64_t begin,
                                         const F& f) {
  if (Packed && begin + kMapBlock <= n) {
    float x[kMapPacks][K][4];
#pragma unroll
    for (int p = 0; p < kMapPacks; p++) {
#pragma unroll
      for (int k = 0; k < K; k++) {
        int64_t at = begin + (p * kMapThreads + threadIdx.x) * 4;
        if constexpr (std::is_same_v<Y, float*>) {
          loadPack(static_cast<const float*>(all.x[k].data) + at, x[p][k]);
        } else {
          all.x[k].four(at, x[p][k]);
        }
      }
    }
#pragma unroll
    for (int p = 0; p < kMapPacks; p++) {
      float out[O][4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float in[K], one[O];
#pragma unroll
        for (int k = 0; k < K; k++) in[k] = x[p][k][i];
        f(in, one);
#pragma unroll
        for (int o = 0; o < O; o++) out[o][i] = one[o];
      }
#pragma unroll
      for (int o = 0; o < O; o++) {
        storeFour(all.y[o], begin + (p * kMapThreads + threadIdx.x) * 4, out[o]);
      }
    }
    return;
  }
  int64_t end = begin + kMapBlock < n ? begin + kMapBlock : n;
  for (int64_t i = begin + threadIdx.x; i < end; i += kMapThreads) {
    float in[K], one[O];
#pragma unroll
    for (int k = 0; k < K; k++) in[k] = all.x[k][i];
    f(in, one);
#pragma unroll
    for (int o = 0; o < O; o++) storeOne(all.y[o], i, one[o]);
  }
}

template <bool Packed, int K, int O, class Y, class F>
__global__ void __launch_bounds__(kMapThreads) mapKernel(Operands<K, O, Y> all, int64_t n, F f) {
  mapBlock<Packed>(all, n, static_cast<int64_t>(blockIdx.x) * kMapBlock, f);
}

// Launcher.

template <int K, int O>
bool packable(const Operands<K, O>& all) {
  bool packed = true;
  for (const AnyFloats& x : all.x) packed = packed && x.f32() && aligned(x.data);
  for (float* y : all.y) packed = packed && aligned(y);
  return packed;
}

template <int K, int O>
bool packable(const Operands<K, O, AnyOut>& all) {
  bool packed = true;
  for (const AnyFloats& x : all.x) packed = packed && x.packs();
  for (const AnyOut& y : all.y) packed = packed && y.packs();
  return packed;
}

template <int K, int O, class Y, class F>
void launchMap(const CudaArgs& args, const Operands<K, O, Y>& all, int64_t n, F f) {
  if (n == 0) return;
  bool packed = packable(all);
  dim3 grid(blocksFor(n, kMapBlock)), block(kMapThreads);
  if (packed) {
    launch(args, mapKernel<true, K, O, Y, F>, grid, block, 0, all, n, f);
  } else {
    launch(args, mapKernel<false, K, O, Y, F>, grid, block, 0, all, n, f);
  }
}

}  // namespace lowrank

// The block products of matmul.cu: tiles of both factors, widened to f32 in shared memory, the next
// ones under way in registers meanwhile.
#pragma once

#include "device.h"
#include "product.h"

namespace lowrank {

// Elements at p[0..3] of which the first `valid` exist; the others are 0.
template <class T>
__device__ __forceinline__ float4 fourOf(const T* p, int64_t valid, bool vector) {
  if constexpr (sizeof(T) == 4) {
    if (vector && valid >= 4) return *reinterpret_cast<const float4*>(p);
  } else {
    if (vector && valid >= 4) {
      uint2 u = *reinterpret_cast<const uint2*>(p);
      auto half = [](unsigned x) { return widen(T{static_cast<uint16_t>(x)}); };
      return make_float4(half(u.x & 0xffff), half(u.x >> 16), half(u.y & 0xffff), half(u.y >> 16));
    }
  }
  return make_float4(valid > 0 ? widen(p[0]) : 0.0f, valid > 1 ? widen(p[1]) : 0.0f,
                     valid > 2 ? widen(p[2]) : 0.0f, valid > 3 ? widen(p[3]) : 0.0f);
}

// The type is the same for the whole launch.
__device__ __forceinline__ float4 fourAt(const void* data, DType type, int64_t at, int64_t valid,
                                         bool vector) {
  if (type == DType::f32) return fourOf(static_cast<const float*>(data) + at, valid, vector);
  if (type == DType::bf16) return fourOf(static_cast<const Bf16*>(data) + at, valid, vector);
  return fourOf(static_cast<const F16*>(data) + at, valid, vector);
}

__device__ __forceinline__ float oneAt(const void* data, DType type, int64_t at) {
  if (type == DType::f32) return static_cast<const float*>(data)[at];
  if (type == DType::bf16) return widen(static_cast<const Bf16*>(data)[at]);
  return widen(static_cast<const F16*>(data)[at]);
}

// A factor as a block sees it: `line` counts its rows or columns of y, `depth` runs along k.
struct Panel {
  const void* data;
  DType type;
  int64_t lineStep, depthStep, from, lines, depth;
  bool vector;  // whether four neighbours may be read at once
};

// The part of a panel that a thread carries: kLines × kDepth elements by 256 threads.
template <int kLines, int kDepth, int kThreads>
struct Carrier {
  static constexpr int kFours = kLines * kDepth / 4;
  static constexpr int kEach = (kFours + kThreads - 1) / kThreads;
  float4 held[kEach];

  __device__ __forceinline__ void load(const Panel& p, int64_t line0, int64_t depth0,
                                       int64_t depthEnd) {
    bool deep = p.depthStep == 1;
#pragma unroll
    for (int i = 0; i < kEach; i++) {
      int v = static_cast<int>(threadIdx.x) + i * kThreads;
      held[i] = make_float4(0, 0, 0, 0);
      if (kFours % kThreads != 0 && v >= kFours) continue;
      int64_t line = line0 + (deep ? v / (kDepth / 4) : v % (kLines / 4) * 4);
      int64_t depth = depth0 + (deep ? v % (kDepth / 4) * 4 : v / (kLines / 4));
      if (line >= p.lines || depth >= depthEnd) continue;
      int64_t valid = deep ? depthEnd - depth : p.lines - line;
      held[i] =
          fourAt(p.data, p.type, p.from + line * p.lineStep + depth * p.depthStep, valid, p.vector);
    }
  }
  // Into to[depth][line], rows kLines + 4 apart.
  __device__ __forceinline__ void store(const Panel& p, float* to) const {
    bool deep = p.depthStep == 1;
#pragma unroll
    for (int i = 0; i < kEach; i++) {
      int v = static_cast<int>(threadIdx.x) + i * kThreads;
      if (kFours % kThreads != 0 && v >= kFours) continue;
      constexpr int kRow = kLines + 4;
      if (deep) {
        float* at = to + v % (kDepth / 4) * 4 * kRow + v / (kDepth / 4);
        at[0] = held[i].x;
        at[kRow] = held[i].y;
        at[2 * kRow] = held[i].z;
        at[3 * kRow] = held[i].w;
      } else {
        *reinterpret_cast<float4*>(to + v / (kLines / 4) * kRow + v % (kLines / 4) * 4) = held[i];
      }
    }
  }
};

// N floats of a row of shared memory, in groups of `width` that lie `apart`.
template <int N, int kWidth>
__device__ __forceinline__ void fragment(const float* row, int apart, float* to) {
#pragma unroll
  for (int j = 0; j < N / kWidth; j++) {
    if constexpr (kWidth == 4) {
      float4 v = *reinterpret_cast<const float4*>(row + j * apart);
      to[4 * j] = v.x;
      to[4 * j + 1] = v.y;
      to[4 * j + 2] = v.z;
      to[4 * j + 3] = v.w;
    } else {
      float2 v = *reinterpret_cast<const float2*>(row + j * apart);
      to[2 * j] = v.x;
      to[2 * j + 1] = v.y;
    }
  }
}

// Whether four neighbours of a row of a tensor whose rows lie `step` apart may be read at once.
inline bool fours(const View& x, int64_t step) {
  return step % 4 == 0 && reinterpret_cast<uintptr_t>(x.data) % (4 * dtypeSize(x.dtype)) == 0;
}

}  // namespace lowrank

// What attention and its gradient share: what a query sees, and products of tiles of 64 queries
// with tiles of 64 keys by 256 threads, each of them 4 × 4.
#pragma once

#include <type_traits>

#include "../common/calls/attention.h"
#include "device.h"
#include "matmul.cuh"

namespace lowrank {

constexpr int kTile = 64;      // queries, and keys, of a tile
constexpr int kStride = 68;    // floats between rows of a tile in shared memory
constexpr int kSlice = 32;     // channels of a tile that are in shared memory at once
constexpr int kRowSlice = 16;  // rows of a tile that are
constexpr int kAttendThreads = 256;

// An input with D contiguous channels, its heads, and its rows `row` elements apart.
struct Heads {
  const void* data;
  DType type;
  bool vector;
};

struct Attend : AttentionCall {
  Heads q, k, v;

  __device__ __forceinline__ int64_t queryRow() const { return h * d; }
  __device__ __forceinline__ int64_t keyRow() const { return g * d; }
  // The keys query i may see but for the mask: [first, last).
  __device__ __forceinline__ int64_t last(int64_t i) const {
    int64_t to = causal ? i + length - t + 1 : length;
    return to < 0 ? 0 : to > length ? length : to;
  }
  __device__ __forceinline__ int64_t first(int64_t i) const {
    int64_t from = window > 0 ? i + length - t - window + 1 : 0;
    return from < 0 ? 0 : from;
  }
  __device__ __forceinline__ bool sees(int64_t batch, int64_t i, int64_t key) const {
    return key >= first(i) && key < last(i) && (!mask || mask[batch * s + key] != 0);
  }
  // Whether every query of a tile sees every key of one.
  __device__ __forceinline__ bool whole(int64_t q0, int64_t k0) const {
    int64_t to = q0 + kTile - 1;
    return !mask && to < t && first(to) <= k0 && last(q0) >= k0 + kTile;
  }
};

// Rows [row0, row0 + 64) of which `rows` exist, `step` elements apart.
struct Rows {
  Heads from;
  int64_t at, step, rows, width;
};

// Channels [c0, c0 + 32) of 64 rows into to[channel][row].
__device__ __forceinline__ void loadTurned(const Rows& r, int64_t c0, float (*to)[kStride]) {
#pragma unroll
  for (int i = 0; i < kTile * kSlice / 4 / kAttendThreads; i++) {
    int v = static_cast<int>(threadIdx.x) + i * kAttendThreads;
    int row = v / (kSlice / 4), c = v % (kSlice / 4) * 4;
    float4 x = make_float4(0, 0, 0, 0);
    if (row < r.rows && c0 + c < r.width) {
      x = fourAt(r.from.data, r.from.type, r.at + row * r.step + c0 + c, r.width - c0 - c,
                 r.from.vector);
    }
    to[c][row] = x.x;
    to[c + 1][row] = x.y;
    to[c + 2][row] = x.z;
    to[c + 3][row] = x.w;
  }
}

// sum += a b' over all channels: rows ty·4… of a, columns tx·4… of b.
__device__ __forceinline__ void addScores(const Rows& a, const Rows& b, float (*as)[kStride],
                                          float (*bs)[kStride], float (&sum)[4][4]) {
  int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  for (int64_t c0 = 0; c0 < a.width; c0 += kSlice) {
    __syncthreads();
    loadTurned(a, c0, as);
    loadTurned(b, c0, bs);
    __syncthreads();
#pragma unroll 8
    for (int c = 0; c < kSlice; c++) {
      float4 x = *reinterpret_cast<const float4*>(&as[c][ty * 4]);
      float4 y = *reinterpret_cast<const float4*>(&bs[c][tx * 4]);
      float left[4] = {x.x, x.y, x.z, x.w}, right[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
      }
    }
  }
}

// sum[4][W / 16] += p' rows: for weights p[step][64], the thread's four columns of p, and channels
// [c0, c0 + W) of 64 rows, of them tx·4 + 64·j…. Where `careful`, a weight of 0 leaves out its row,
// whatever that holds. kPadded: W floats and 4 between rows of `slice`.
template <int W>
__device__ __forceinline__ void addWeighted(const float (*p)[kStride], const Rows& r, int64_t c0,
                                            float* slice, bool careful, float (&sum)[4][W / 16]) {
  int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  for (int64_t r0 = 0; r0 < kTile && r0 < r.rows; r0 += kRowSlice) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRowSlice * W / 4 / kAttendThreads; i++) {
      int v = static_cast<int>(threadIdx.x) + i * kAttendThreads;
      int row = v / (W / 4), c = v % (W / 4) * 4;
      float4 x = make_float4(0, 0, 0, 0);
      if (r0 + row < r.rows && c0 + c < r.width) {
        x = fourAt(r.from.data, r.from.type, r.at + (r0 + row) * r.step + c0 + c, r.width - c0 - c,
                   r.from.vector);
      }
      *reinterpret_cast<float4*>(slice + row * W + c) = x;
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kRowSlice; k++) {
      float4 w = *reinterpret_cast<const float4*>(&p[r0 + k][ty * 4]);
      float left[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int j = 0; j < W / 64; j++) {
        float4 x = *reinterpret_cast<const float4*>(slice + k * W + j * 64 + tx * 4);
        float right[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            float more = fmaf(left[i], right[e], sum[i][j * 4 + e]);
            sum[i][j * 4 + e] = careful && left[i] == 0 ? sum[i][j * 4 + e] : more;
          }
        }
      }
    }
  }
}

// Writes a thread's part of rows [ty·4…] and channels of a result, `factor` times.
template <int W>
__device__ __forceinline__ void storeRows(AnyOut to, int64_t step, int64_t rows, int64_t c0,
                                          int64_t width, const float (&factor)[4],
                                          const float (&sum)[4][W / 16]) {
  int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  auto store = [&](auto* data) {
    using T = std::remove_reference_t<decltype(*data)>;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (ty * 4 + i >= rows) continue;
#pragma unroll
      for (int j = 0; j < W / 16; j++) {
        int64_t c = c0 + j / 4 * 64 + tx * 4 + j % 4;
        if (c < width) data[(ty * 4 + i) * step + c] = narrow<T>(sum[i][j] * factor[i]);
      }
    }
  };
  if (to.type == DType::f32) {
    store(static_cast<float*>(to.data));
  } else {
    store(static_cast<Bf16*>(to.data));
  }
}

// Sum, or largest, over the 16 threads that share rows of a tile.
__device__ __forceinline__ float rowSum(float x) {
  for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
__device__ __forceinline__ float rowMax(float x) {
  for (int step = 8; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// The sizes, settings and inputs of a call, checked.
Heads headsOf(const CudaArgs& args, size_t i);

// Says whether it took the call: one query a head, in f32 whatever the arithmetic of products.
bool attentionOfOne(const CudaArgs& args, const Attend& s, AnyOut y, float* lse);

void attentionGrad(const CudaArgs& args);

}  // namespace lowrank

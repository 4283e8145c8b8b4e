// Attention on the tensor cores, for `compute: bf16`: q, k, v and dy rounded to bf16 and laid out
// by heads, tiles of them in shared memory, everything else in registers.
#pragma once

#include "attention.cuh"
#include "mma.cuh"

namespace lowrank {

constexpr int kMmaThreads = 128;       // four warps
constexpr int64_t kMmaChannels = 128;  // the largest head size; larger ones go the f32 way
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Rows of bf16 [B, heads, rows, DP], D rounded up to DP with zeros.
struct PackedHeads {
  const Bf16* data;
  int64_t heads, rows;
  const int* unbounded;  // [B, heads]: whether a head had NaN or infinities, which are 0 here
};

// Whether a number is NaN or infinite as bf16. Such values never meet a weight of 0 on the tensor
// cores, which would make NaN of them: they are 0 there, and are added for those who see them.
__device__ __forceinline__ bool isUnbounded(float x) {
  return (__float_as_uint(x) & 0x7fffffffu) >= 0x7f7f8000u;
}

// Where 8 channels of a row of a tile lie: turned about so that neither the rows of a fragment nor
// the chunks of a row meet in a bank.
template <int DP>
__device__ __forceinline__ Bf16* chunkAt(Bf16* tile, int row, int chunk) {
  return tile + row * DP + ((chunk ^ (row & 7)) * 8);
}

// Begins to copy a tile of ROWS rows of which `rows` exist.
template <int DP, int ROWS>
__device__ __forceinline__ void copyTile(Bf16* to, const Bf16* from, int rows) {
#pragma unroll
  for (int i = 0; i < ROWS * DP / 8 / kMmaThreads; i++) {
    int v = static_cast<int>(threadIdx.x) + i * kMmaThreads;
    int row = v / (DP / 8), chunk = v % (DP / 8);
    bool there = row < rows;
    copyAsync(chunkAt<DP>(to, row, chunk), there ? from + row * DP + chunk * 8 : from, there);
  }
}

// The left factor [16 lines from line0, 16 channels from 16·step].
template <int DP>
__device__ __forceinline__ void leftFragment(uint32_t (&a)[4], Bf16* tile, int line0, int step) {
  int lane = threadIdx.x % kWarp, i = lane / 8;
  loadMatrices(a, chunkAt<DP>(tile, line0 + i % 2 * 8 + lane % 8, step * 2 + i / 2));
}
// Two right factors [16 channels from 16·step, 8 lines]: those of line0, and of line0 + 8.
template <int DP>
__device__ __forceinline__ void rightFragments(uint32_t (&b)[4], Bf16* tile, int line0, int step) {
  int lane = threadIdx.x % kWarp, i = lane / 8;
  loadMatrices(b, chunkAt<DP>(tile, line0 + i / 2 * 8 + lane % 8, step * 2 + i % 2));
}
// Two right factors [16 lines from line0, 8 channels]: those of `chunk`, and of the next.
template <int DP>
__device__ __forceinline__ void turnedFragments(uint32_t (&b)[4], Bf16* tile, int line0,
                                                int chunk) {
  int lane = threadIdx.x % kWarp, i = lane / 8;
  loadTurnedMatrices(b, chunkAt<DP>(tile, line0 + i % 2 * 8 + lane % 8, chunk + i / 2));
}

// sum [16, 8·N] += weights [16, 16·K] rows of a tile [16·K, 8·N].
template <int DP, int K>
__device__ __forceinline__ void addRows(float (&sum)[DP / 8][4], const uint32_t (&weights)[K][4],
                                        Bf16* tile) {
#pragma unroll
  for (int k = 0; k < K; k++) {
#pragma unroll
    for (int c = 0; c < DP / 8; c += 2) {
      uint32_t b[4];
      turnedFragments<DP>(b, tile, k * 16, c);
      mmaBf16(sum[c], weights[k], b[0], b[1]);
      mmaBf16(sum[c + 1], weights[k], b[2], b[3]);
    }
  }
}

// Accumulators [16, 16·K] as left factors.
template <int K>
__device__ __forceinline__ void asFactors(uint32_t (&a)[K][4], const float (&c)[2 * K][4]) {
#pragma unroll
  for (int k = 0; k < K; k++) {
    a[k][0] = packBf16(c[2 * k][0], c[2 * k][1]);
    a[k][1] = packBf16(c[2 * k][2], c[2 * k][3]);
    a[k][2] = packBf16(c[2 * k + 1][0], c[2 * k + 1][1]);
    a[k][3] = packBf16(c[2 * k + 1][2], c[2 * k + 1][3]);
  }
}

// Whether each of `queries` from q0 sees each of `keys` from k0.
__device__ __forceinline__ bool seesAll(const Attend& s, int64_t q0, int64_t queries, int64_t k0,
                                        int64_t keys) {
  int64_t to = q0 + queries - 1;
  return !s.mask && to < s.t && s.first(to) <= k0 && s.last(q0) >= k0 + keys;
}

// The keys of a tile of kKeys that a query sees, counted from the tile's first.
struct SeenKeys {
  int from, to;
  const uint8_t* mask;  // of the tile, or null
  __device__ __forceinline__ bool operator()(int key) const {
    return key >= from && key < to && (!mask || mask[key] != 0);
  }
};
__device__ __forceinline__ SeenKeys seenKeys(const Attend& s, int64_t batch, int64_t query,
                                             int64_t k0, int keys) {
  int64_t from = s.first(query) - k0, to = s.last(query) - k0;
  return {static_cast<int>(from < 0      ? 0
                           : from > keys ? keys
                                         : from),
          static_cast<int>(to < 0      ? 0
                           : to > keys ? keys
                                       : to),
          s.mask ? s.mask + batch * s.s + k0 : nullptr};
}

// Rows of a result [.., D] from accumulators of 16 rows, `factor` times; `rows` of them exist.
template <int DP>
__device__ __forceinline__ void storeSums(AnyOut to, int64_t step, int64_t rows, int64_t width,
                                          const float (&factor)[2], const float (&sum)[DP / 8][4]) {
  int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (g + half * 8 >= rows) continue;
    int64_t row = (g + half * 8) * step;
#pragma unroll
    for (int c = 0; c < DP / 8; c++) {
      int channel = c * 8 + t * 2;
      float x = sum[c][2 * half] * factor[half], y = sum[c][2 * half + 1] * factor[half];
      if (width % 2 == 0 && channel < width) {
        to.two(row + channel, x, y);
      } else {
        if (channel < width) to.set(row + channel, x);
        if (channel + 1 < width) to.set(row + channel + 1, y);
      }
    }
  }
}

// x [B, rows, heads, D] as bf16 [B, heads, rows, DP] in `to`; rows that the mask hides become 0,
// and NaN and infinities, too, where `unbounded` [B, heads] is given, which an earlier packing
// cleared.
PackedHeads packHeads(const CudaArgs& args, const Heads& x, int64_t b, int64_t rows, int64_t heads,
                      int64_t d, const uint8_t* mask, Bf16* to, int* unbounded = nullptr,
                      int* cleared = nullptr, int64_t clears = 0);
inline int64_t paddedChannels(int64_t d) { return d <= 64 ? 64 : 128; }
inline uint64_t packedBytes(int64_t b, int64_t rows, int64_t heads, int64_t d) {
  return static_cast<uint64_t>(b * rows * heads * paddedChannels(d)) * sizeof(Bf16);
}

// Both answer whether the tensor cores take the call: `compute: bf16` and a head size that fits.
bool attentionMma(const CudaArgs& args, const Attend& s, AnyOut y, float* lse);
bool attentionGradMma(const CudaArgs& args, const Attend& s, const Heads& dy, const void* lse,
                      DType lseType, const float* delta, AnyOut dq, AnyOut dk, AnyOut dv);

}  // namespace lowrank

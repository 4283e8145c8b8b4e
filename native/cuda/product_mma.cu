// Products of bf16 factors on the tensor cores: tiles of 128 × 128, 32 terms at a time, copied into
// shared memory three steps ahead as they lie in memory; fragments are turned while they are read.
#include "activations.cuh"
#include "matmul.cuh"
#include "mma.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;  // eight warps, each 64 × 32 of the tile
constexpr int kLines = 128, kDepth = 32, kStages = 3, kSlot = kLines * kDepth;
constexpr int kGroup = 8;  // rows of tiles that blocks which run together share

// Where eight elements of a tile lie: [line][depth] where depth runs along memory, else
// [depth][line]; turned about so that the rows of a fragment meet in no bank.
template <bool DEEP>
__device__ __forceinline__ Bf16* chunkOf(Bf16* tile, int row, int chunk) {
  if constexpr (DEEP) {
    return tile + row * kDepth + (chunk ^ (row / 2 % 4)) * 8;
  } else {
    return tile + row * kLines + (chunk ^ (row % 8)) * 8;
  }
}

// Begins to copy lines [line0, +128) and terms [k0, +32) of a factor; zeros past the end.
template <bool DEEP>
__device__ __forceinline__ void copyFactor(Bf16* to, const Bf16* from, int64_t step, int64_t line0,
                                           int64_t lines, int64_t k0, int64_t terms) {
  constexpr int kChunks = (DEEP ? kDepth : kLines) / 8;
#pragma unroll
  for (int i = 0; i < kSlot / 8 / kThreads; i++) {
    int v = static_cast<int>(threadIdx.x) + i * kThreads, row = v / kChunks, chunk = v % kChunks;
    int64_t line = line0 + (DEEP ? row : chunk * 8), k = k0 + (DEEP ? chunk * 8 : row);
    bool there = line < lines && k < terms;
    const Bf16* at = from + (DEEP ? line * step + k : k * step + line);
    copyAsync(chunkOf<DEEP>(to, row, chunk), there ? at : from, there);
  }
}

// The left factor's fragment: 16 lines from line0, 16 terms from 16·step.
template <bool DEEP>
__device__ __forceinline__ void leftOf(uint32_t (&a)[4], Bf16* tile, int line0, int step) {
  int lane = threadIdx.x % kWarp, i = lane / 8;
  if constexpr (DEEP) {
    loadMatrices(a, chunkOf<true>(tile, line0 + i % 2 * 8 + lane % 8, step * 2 + i / 2));
  } else {
    loadTurnedMatrices(a,
                       chunkOf<false>(tile, step * 16 + i / 2 * 8 + lane % 8, line0 / 8 + i % 2));
  }
}
// Two of the right factor's: 16 terms, 8 lines from line0 and 8 from line0 + 8.
template <bool DEEP>
__device__ __forceinline__ void rightOf(uint32_t (&b)[4], Bf16* tile, int line0, int step) {
  int lane = threadIdx.x % kWarp, i = lane / 8;
  if constexpr (DEEP) {
    loadMatrices(b, chunkOf<true>(tile, line0 + i / 2 * 8 + lane % 8, step * 2 + i % 2));
  } else {
    loadTurnedMatrices(b,
                       chunkOf<false>(tile, step * 16 + i % 2 * 8 + lane % 8, line0 / 8 + i / 2));
  }
}

template <bool DEEPA, bool DEEPB>
__global__ void __launch_bounds__(kThreads, 2) productMmaKernel(Product p) {
  DYNAMIC_SHARED(Bf16, memory);
  int64_t down = (p.m + kLines - 1) / kLines, across = (p.n + kLines - 1) / kLines;
  int64_t tile = blockIdx.x % (down * across), batch = blockIdx.x / (down * across);
  int64_t group = tile / (kGroup * across), height = min(down - group * kGroup, int64_t{kGroup});
  int64_t m0 = (group * kGroup + tile % (kGroup * across) % height) * kLines;
  int64_t n0 = tile % (kGroup * across) / height * kLines;
  const Bf16 *a = static_cast<const Bf16*>(p.a.data), *b = static_cast<const Bf16*>(p.b.data);
  int64_t rest = batch;
  for (int d = p.batches.axes - 1; d >= 0; d--) {
    a += rest % p.batches.dims[d] * p.batches.a[d];
    b += rest % p.batches.dims[d] * p.batches.b[d];
    rest /= p.batches.dims[d];
  }
  int64_t aStep = DEEPA ? p.a.row : p.a.col, bStep = DEEPB ? p.b.col : p.b.row;
  auto fetch = [&](int64_t step) {
    int64_t k0 = step * kDepth;
    if (k0 < p.k) {
      Bf16* to = memory + step % kStages * 2 * kSlot;
      copyFactor<DEEPA>(to, a, aStep, m0, p.m, k0, p.k);
      copyFactor<DEEPB>(to + kSlot, b, bStep, n0, p.n, k0, p.k);
    }
    endCopies();
  };

  int warp = static_cast<int>(threadIdx.x) / kWarp, line0 = warp / 4 * 64, col0 = warp % 4 * 32;
  float sum[4][4][4] = {};
  for (int i = 0; i < kStages - 1; i++) fetch(i);
  int64_t steps = (p.k + kDepth - 1) / kDepth;
  for (int64_t step = 0; step < steps; step++) {
    copiesLeft<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1);
    Bf16* left = memory + step % kStages * 2 * kSlot;
#pragma unroll
    for (int k = 0; k < kDepth / 16; k++) {
      uint32_t as[4][4];
#pragma unroll
      for (int i = 0; i < 4; i++) leftOf<DEEPA>(as[i], left, line0 + i * 16, k);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        uint32_t bs[4];
        rightOf<DEEPB>(bs, left + kSlot, col0 + j * 8, k);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          mmaBf16(sum[i][j], as[i], bs[0], bs[1]);
          mmaBf16(sum[i][j + 1], as[i], bs[2], bs[3]);
        }
      }
    }
  }
  copiesLeft<0>();

  int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  AnyOut y = AnyOut(p.y, p.yType).from(batch * p.m * p.n);
  bool pairs = p.n % 2 == 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int64_t row = m0 + line0 + i * 16 + half * 8 + g;
      if (row >= p.m) continue;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int64_t column = n0 + col0 + j * 8 + t * 2, at = row * p.n + column;
        float value[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
          if (column + e >= p.n) continue;
          value[e] = p.alpha * sum[i][j][half * 2 + e];
          if (p.bias) value[e] += oneAt(p.bias, p.biasType, column + e);
          if (p.accumulate) value[e] += y[at + e];
          if (!pairs) y.set(at + e, value[e]);
        }
        if (pairs && column < p.n) y.two(at, value[0], value[1]);
      }
    }
  }
  finishTile<kThreads>(p, batch, m0, kLines, n0, kLines);
}

// Whether every eight neighbours of a factor lie within a row, and where a copy may begin.
bool eights(const Factor& f, int64_t along, const Batches& s, const int64_t* steps) {
  int64_t away = f.col == 1 ? f.row : f.col;
  bool fits = reinterpret_cast<uintptr_t>(f.data) % 16 == 0 && away % 8 == 0 && along % 8 == 0;
  for (int d = 0; d < s.axes; d++) fits = fits && steps[d] % 8 == 0;
  return fits;
}

}  // namespace

bool mmaProduct(const CudaArgs& args, const Product& p) {
  bool deepA = p.a.col == 1, deepB = p.b.row == 1;
  if (p.a.dtype != DType::bf16 || p.b.dtype != DType::bf16 ||
      !eights(p.a, deepA ? p.k : p.m, p.batches, p.batches.a) ||
      !eights(p.b, deepB ? p.k : p.n, p.batches, p.batches.b)) {
    return false;
  }
  int64_t tiles = (p.m + kLines - 1) / kLines * ((p.n + kLines - 1) / kLines) * p.batches.count;
  auto run = [&](auto kernel) {
    launch(args, kernel, dim3(blocksFor(tiles, 1)), dim3(kThreads),
           kStages * 2 * kSlot * sizeof(Bf16), p);
  };
  if (deepA) {
    deepB ? run(productMmaKernel<true, true>) : run(productMmaKernel<true, false>);
  } else {
    deepB ? run(productMmaKernel<false, true>) : run(productMmaKernel<false, false>);
  }
  return true;
}

}  // namespace lowrank

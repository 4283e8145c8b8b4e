// LoRA's products that read a weight: merging, and the row lengths that DoRA needs. W is read once;
// everything beside it is of rank r.
#include <algorithm>

#include "../common/calls/low_rank.h"
#include "matmul.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;
constexpr int kPairs = 32;  // of a launch
constexpr int kTile = 64;   // rows, and columns, of W in a block
constexpr int kDepth = 16;  // ranks of a tile that are in shared memory at once

struct Pair {
  const void *a, *b;
  int64_t rank;
  DType aType, bType;
  float scale;
  bool vectorA, vectorB;
};

// W [rows, cols] + Σ scale B A. Rows run along B's where `rowsAreOut`, else along A's columns.
struct LowRankSum {
  const void* w;
  DType type;
  int64_t rows, cols;
  int64_t rowStep, colStep;  // of W
  bool rowsAreOut, vector;
  int pairs;
  Pair pair[kPairs];
};

__device__ __forceinline__ Panel panelOfB(const LowRankSum& p, const Pair& f) {
  int64_t out = p.rowsAreOut ? p.rows : p.cols;
  return {f.b, f.bType, f.rank, 1, 0, out, f.rank, f.vectorB};
}
__device__ __forceinline__ Panel panelOfA(const LowRankSum& p, const Pair& f) {
  int64_t in = p.rowsAreOut ? p.cols : p.rows;
  return {f.a, f.aType, 1, in, 0, in, f.rank, f.vectorA};
}

struct TileMemory {
  float left[kDepth][kTile + 4], right[kDepth][kTile + 4];
};

// A tile of the sum: each thread four rows by four columns, 0 past the end.
__device__ __forceinline__ void lowRankTile(const LowRankSum& p, int64_t row0, int64_t col0,
                                            TileMemory& memory, float (&sum)[4][4]) {
  int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int64_t row = row0 + ty * 4 + i, col = col0 + tx * 4;
    int64_t valid = row < p.rows ? p.cols - col : 0, at = row * p.rowStep + col * p.colStep;
    if (p.colStep == 1) {
      float4 w = fourAt(p.w, p.type, at, valid, p.vector);
      sum[i][0] = w.x;
      sum[i][1] = w.y;
      sum[i][2] = w.z;
      sum[i][3] = w.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        sum[i][j] = j < valid ? oneAt(p.w, p.type, at + j * p.colStep) : 0.0f;
      }
    }
  }
  for (int n = 0; n < p.pairs; n++) {
    const Pair& f = p.pair[n];
    Panel left = p.rowsAreOut ? panelOfB(p, f) : panelOfA(p, f);
    Panel right = p.rowsAreOut ? panelOfA(p, f) : panelOfB(p, f);
    for (int64_t k0 = 0; k0 < f.rank; k0 += kDepth) {
      Carrier<kTile, kDepth, kThreads> rows, cols;
      rows.load(left, row0, k0, f.rank);
      cols.load(right, col0, k0, f.rank);
      __syncthreads();
      rows.store(left, &memory.left[0][0]);
      cols.store(right, &memory.right[0][0]);
      __syncthreads();
      int depth = static_cast<int>(min(static_cast<int64_t>(kDepth), f.rank - k0));
      for (int k = 0; k < depth; k++) {
        float a[4], b[4];
        fragment<4, 4>(&memory.left[k][ty * 4], 0, a);
        fragment<4, 4>(&memory.right[k][tx * 4], 0, b);
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
          for (int j = 0; j < 4; j++) sum[i][j] = fmaf(f.scale * a[i], b[j], sum[i][j]);
        }
      }
    }
  }
}

// Whether a float stands for a number.
__device__ __forceinline__ bool isFinite(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

// The tile rounded once into y; ok becomes 0 where something of it is not finite.
template <class T>
__global__ void __launch_bounds__(kThreads) mergeKernel(LowRankSum p, T* y, bool vectorY, int* ok) {
  SHARED(TileMemory, memory, [1]);
  int64_t across = (p.cols + kTile - 1) / kTile;
  int64_t row0 = blockIdx.x / across * kTile, col0 = blockIdx.x % across * kTile;
  int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  float sum[4][4];
  lowRankTile(p, row0, col0, memory[0], sum);
  bool good = true;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int64_t row = row0 + ty * 4 + i, col = col0 + tx * 4;
    if (row >= p.rows || col >= p.cols) continue;
    struct alignas(4 * sizeof(T)) Four {
      T v[4];
    } four;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      four.v[j] = narrow<T>(sum[i][j]);
      if (col + j < p.cols) good = good && isFinite(widen(four.v[j]));
    }
    T* at = y + row * p.cols + col;
    if (vectorY && col + 3 < p.cols) {
      *reinterpret_cast<Four*>(at) = four;
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (col + j < p.cols) at[j] = four.v[j];
      }
    }
  }
  if (!good) atomicExch(ok, 0);
}

__global__ void setKernel(int* to, int value) { *to = value; }

// Squares of a tile row, summed over this block's share of the columns: parts[share][row].
__global__ void __launch_bounds__(kThreads) squaresKernel(LowRankSum p, double* parts) {
  SHARED(TileMemory, memory, [1]);
  int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile, tiles = (p.cols + kTile - 1) / kTile;
  int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  double squares[4] = {};
  for (int64_t t = blockIdx.y; t < tiles; t += gridDim.y) {
    float sum[4][4];
    lowRankTile(p, row0, t * kTile, memory[0], sum);
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        double v = t * kTile + tx * 4 + j < p.cols ? static_cast<double>(sum[i][j]) : 0.0;
        squares[i] += v * v;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    for (int step = 8; step > 0; step /= 2) {
      squares[i] += __shfl_xor_sync(kAllLanes, squares[i], step);
    }
    int64_t row = row0 + ty * 4 + i;
    if (tx == 0 && row < p.rows) parts[blockIdx.y * p.rows + row] = squares[i];
  }
}

__global__ void __launch_bounds__(kThreads)
    lengthsKernel(const double* parts, int count, int64_t rows, float* lengths) {
  int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= rows) return;
  double sum = 0;
  for (int i = 0; i < count; i++) sum += parts[i * rows + row];
  lengths[row] = static_cast<float>(sqrt(sum));
}

// W and the pairs [from, to) of a call whose tensors begin with W and the pairs; scales begin at
// attribute 1. The rows of the sum are W's where `asStored`, else those of B.
LowRankSum sumOf(const CudaArgs& args, size_t from, size_t to, bool asStored) {
  const View& w = args[0];
  bool transposed = args.integer(0, 0, 1) != 0;
  LowRankSum p = {};
  p.w = w.data;
  p.type = w.dtype;
  bool turned = transposed && !asStored;
  p.rows = w.dims[turned ? 1 : 0];
  p.cols = w.dims[turned ? 0 : 1];
  p.rowStep = turned ? 1 : w.dims[1];
  p.colStep = turned ? w.dims[1] : 1;
  p.rowsAreOut = !transposed || turned;
  p.vector = fours(w, w.dims[1]);
  for (size_t i = from; i < to; i++) {
    const View &a = args[1 + 2 * i], &b = args[2 + 2 * i];
    float scale = static_cast<float>(args.attrs[1 + i]);
    p.pair[p.pairs++] = {a.data,  b.data, a.dims[0],           a.dtype,
                         b.dtype, scale,  fours(a, a.dims[1]), fours(b, b.dims[1])};
  }
  return p;
}

// y = W + Σ s_i B_i A_i, rounded once; ok [1] tells whether all of y is finite.
void mergeLowRank(const CudaArgs& args) {
  size_t pairs = mergePairs(args);
  const View &y = args[args.count - 2], &ok = args[args.count - 1];
  launch(args, setKernel, dim3(1), dim3(1), 0, ok.as<int>(), 1);
  if (y.count == 0) return;
  int64_t tiles = (y.dims[0] + kTile - 1) / kTile * ((y.dims[1] + kTile - 1) / kTile);
  // More pairs than a launch takes are summed in f32 first.
  bool several = pairs > kPairs;
  Workspace held =
      several ? Workspace(args.device.memory, static_cast<uint64_t>(y.count) * sizeof(float))
              : Workspace();
  Workspace scratchOk = several ? Workspace(args.device.memory, sizeof(int)) : Workspace();
  for (size_t from = 0; from == 0 || from < pairs; from += kPairs) {
    size_t to = std::min<size_t>(from + kPairs, pairs);
    LowRankSum p = sumOf(args, from, to, true);
    if (from > 0) {
      p.w = held.as<float>();
      p.type = DType::f32;
      p.vector = p.cols % 4 == 0;
    }
    dim3 grid(blocksFor(tiles, 1));
    if (to < pairs) {
      launch(args, mergeKernel<float>, grid, dim3(kThreads), 0, p, held.as<float>(),
             p.cols % 4 == 0, scratchOk.as<int>());
      continue;
    }
    byFloat(y.dtype, [&](auto type) {
      using T = decltype(type);
      launch(args, mergeKernel<T>, grid, dim3(kThreads), 0, p, y.as<T>(), fours(y, y.dims[1]),
             ok.as<int>());
    });
  }
}

// n [out] = the lengths of the rows of W + s B A [out, in], summed in f64.
void lowRankNorms(const CudaArgs& args) {
  checkNorms(args);
  LowRankSum p = sumOf(args, 0, 1, false);
  if (p.rows == 0) return;
  int64_t down = (p.rows + kTile - 1) / kTile, across = (p.cols + kTile - 1) / kTile;
  int64_t wanted = (2 * args.device.multiprocessors + down - 1) / down;
  int64_t shares = std::max<int64_t>(1, std::min({wanted, across, int64_t{64}}));
  Workspace held(args.device.memory, static_cast<uint64_t>(shares * p.rows) * sizeof(double));
  launch(args, squaresKernel, dim3(blocksFor(down, 1), static_cast<unsigned>(shares)),
         dim3(kThreads), 0, p, held.as<double>());
  launch(args, lengthsKernel, dim3(blocksFor(p.rows, kThreads)), dim3(kThreads), 0,
         held.as<double>(), static_cast<int>(shares), p.rows, args[3].as<float>());
}

}  // namespace

void registerLora(CudaRegistry& r) {
  r.push_back({"mergeLowRank", mergeLowRank});
  r.push_back({"lowRankNorms", lowRankNorms});
}

}  // namespace lowrank

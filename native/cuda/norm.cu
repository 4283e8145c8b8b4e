// RMS and layer norm over the last axis, and their gradients.
#include "../common/calls/rows.h"
#include "pack.cuh"
#include "reduce.h"

namespace lowrank {

namespace {

constexpr int kPacks = 2;      // of four elements that a thread keeps of a row
constexpr int kWidest = 8192;  // elements of a row that its threads can keep
constexpr int kPlain = 256;    // threads a row that is not kept

// y = (x - shift) * inverse * w (+ b)
struct Row {
  float shift, inverse;
};

// The rows of a launch: x [rows, n], by blockDim.x threads each, blockDim.y rows a block.
struct Shape {
  int64_t rows, n;
  float eps;
};

__device__ __forceinline__ int64_t rowOf() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}
// Of the thread's p-th pack in its row.
__device__ __forceinline__ int64_t placeOfPack(int p) {
  return (static_cast<int64_t>(p) * blockDim.x + threadIdx.x) * 4;
}

// The packs of a row that this thread keeps; 0 past its end.
__device__ __forceinline__ void keep(const AnyFloats& x, int64_t from, int64_t n,
                                     float (&v)[kPacks][4]) {
#pragma unroll
  for (int p = 0; p < kPacks; p++) {
    int64_t i = placeOfPack(p);
    v[p][0] = v[p][1] = v[p][2] = v[p][3] = 0;
    if (i < n) x.four(from + i, v[p]);
  }
}

// f(x[i], i) for this thread's elements of a row that is not kept.
template <class F>
__device__ __forceinline__ void walk(int64_t n, F f) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(i);
}

// Mean (0 for RMS norm) and 1/sqrt(variance + eps); `room` has two places for each warp.
template <bool Centre, bool Kept>
__device__ __forceinline__ Row statistics(const AnyFloats& x, int64_t from, const Shape& s,
                                          const float (&v)[kPacks][4], float (&room)[2][kWarp]) {
  float count = static_cast<float>(s.n);
  Row row = {0, 0};
  if constexpr (Centre) {
    float sum[1] = {0};
    if constexpr (Kept) {
#pragma unroll
      for (int p = 0; p < kPacks; p++) sum[0] += (v[p][0] + v[p][1]) + (v[p][2] + v[p][3]);
    } else {
      walk(s.n, [&](int64_t i) { sum[0] += x[from + i]; });
    }
    blockSum(sum, room[0]);
    row.shift = sum[0] / count;
  }
  float square[1] = {0};
  auto add = [&](float a) { square[0] += (a - row.shift) * (a - row.shift); };
  if constexpr (Kept) {
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
      if (placeOfPack(p) >= s.n) continue;
#pragma unroll
      for (int k = 0; k < 4; k++) add(v[p][k]);
    }
  } else {
    walk(s.n, [&](int64_t i) { add(x[from + i]); });
  }
  blockSum(square, room[1]);
  row.inverse = 1.0f / sqrtf(square[0] / count + s.eps);
  return row;
}

// Kept: every address a multiple of four elements, and the row in registers.
template <bool Centre, bool Kept>
__global__ void __launch_bounds__(1024)
    normKernel(AnyFloats x, AnyFloats w, AnyFloats b, AnyOut y, Shape s) {
  SHARED(float, room, [2][kWarp]);
  int64_t r = rowOf(), from = r * s.n;
  if (r >= s.rows) return;  // whole warps of blocks without a barrier
  float v[kPacks][4];
  if constexpr (Kept) keep(x, from, s.n, v);
  Row row = statistics<Centre, Kept>(x, from, s, v, room);
  if constexpr (Kept) {
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
      int64_t i = placeOfPack(p);
      if (i >= s.n) continue;
      float weight[4], bias[4] = {0, 0, 0, 0}, out[4];
      w.four(i, weight);
      if constexpr (Centre) b.four(i, bias);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        out[k] = (v[p][k] - row.shift) * row.inverse * weight[k] + bias[k];
      }
      y.four(from + i, out);
    }
  } else {
    walk(s.n, [&](int64_t i) {
      float out = (x[from + i] - row.shift) * row.inverse * w[i];
      y.set(from + i, Centre ? out + b[i] : out);
    });
  }
}

// With h = (x - mean) i, i = 1/sqrt(var + eps), g = w dy:
//   RMS:   dx = i (g - h mean(g h))
//   layer: dx = i (g - mean(g) - h mean(g h))
template <bool Centre, bool Kept>
__global__ void __launch_bounds__(1024)
    gradInputKernel(AnyFloats x, AnyFloats w, AnyFloats dy, AnyOut dx, Shape s) {
  SHARED(float, room, [2][kWarp]);
  SHARED(float, sums, [2 * kWarp]);
  int64_t r = rowOf(), from = r * s.n;
  if (r >= s.rows) return;
  float v[kPacks][4], g[kPacks][4];
  if constexpr (Kept) {
    keep(x, from, s.n, v);
    keep(dy, from, s.n, g);
  }
  Row row = statistics<Centre, Kept>(x, from, s, v, room);
  float mean[2] = {0, 0};  // of g h, and of g
  if constexpr (Kept) {
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
      int64_t i = placeOfPack(p);
      if (i >= s.n) continue;
      float weight[4];
      w.four(i, weight);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        v[p][k] = (v[p][k] - row.shift) * row.inverse;
        g[p][k] *= weight[k];
        mean[0] += g[p][k] * v[p][k];
        mean[1] += g[p][k];
      }
    }
  } else {
    walk(s.n, [&](int64_t i) {
      float gi = w[i] * dy[from + i];
      mean[0] += gi * ((x[from + i] - row.shift) * row.inverse);
      mean[1] += gi;
    });
  }
  blockSum(mean, sums);
  float gh = mean[0] / static_cast<float>(s.n);
  float gm = Centre ? mean[1] / static_cast<float>(s.n) : 0.0f;
  if constexpr (Kept) {
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
      int64_t i = placeOfPack(p);
      if (i >= s.n) continue;
      float out[4];
#pragma unroll
      for (int k = 0; k < 4; k++) out[k] = row.inverse * (g[p][k] - gm - v[p][k] * gh);
      dx.four(from + i, out);
    }
  } else {
    walk(s.n, [&](int64_t i) {
      float h = (x[from + i] - row.shift) * row.inverse;
      dx.set(from + i, row.inverse * (w[i] * dy[from + i] - gm - h * gh));
    });
  }
}

// dw = sum over rows of dy (x - mean) i: each block adds up some rows, part [blocks, n].
template <bool Centre, bool Kept>
__global__ void __launch_bounds__(1024)
    gradWeightKernel(AnyFloats x, AnyFloats dy, float* part, Shape s) {
  SHARED(float, room, [2][kWarp]);
  part += blockIdx.x * s.n;
  float sum[kPacks][4] = {};
  for (int64_t r = blockIdx.x; r < s.rows; r += gridDim.x) {
    int64_t from = r * s.n;
    float v[kPacks][4], d[kPacks][4];
    if constexpr (Kept) {
      keep(x, from, s.n, v);
      keep(dy, from, s.n, d);
    }
    Row row = statistics<Centre, Kept>(x, from, s, v, room);
    if constexpr (Kept) {
#pragma unroll
      for (int p = 0; p < kPacks; p++) {
#pragma unroll
        for (int k = 0; k < 4; k++) sum[p][k] += d[p][k] * ((v[p][k] - row.shift) * row.inverse);
      }
    } else {
      bool first = r == blockIdx.x;
      walk(s.n, [&](int64_t i) {
        float add = dy[from + i] * ((x[from + i] - row.shift) * row.inverse);
        part[i] = first ? add : part[i] + add;
      });
    }
    __syncthreads();  // `room` is free again
  }
  if constexpr (Kept) {
#pragma unroll
    for (int p = 0; p < kPacks; p++) {
      if (placeOfPack(p) < s.n) storePack(part + placeOfPack(p), sum[p]);
    }
  }
}

// Launchers.

Shape shapeOf(const NormRows& a) { return {a.rows, a.n, static_cast<float>(a.eps)}; }

bool keepable(const Shape& s) { return s.n % 4 == 0 && s.n <= kWidest; }

// Threads of a row, and rows of a block where a warp has one.
dim3 blockFor(const Shape& s, bool kept) {
  unsigned threads = kept ? (blocksFor(s.n, kPacks * 4) + kWarp - 1) / kWarp * kWarp : kPlain;
  return dim3(threads, threads == kWarp ? 8 : 1);
}

template <bool Centre>
void norm(const CudaArgs& args) {
  NormRows a = normCall(args, Centre);
  AnyFloats x = anyFloats(args, 0), w = anyFloats(args, 1), b = Centre ? anyFloats(args, 2) : w;
  if (args[0].count == 0) return;
  Shape s = shapeOf(a);
  AnyOut y(a.out);
  bool kept = keepable(s) && x.packs() && w.packs() && b.packs() && y.packs();
  dim3 block = blockFor(s, kept), grid(blocksFor(s.rows, block.y));
  launch(args, kept ? normKernel<Centre, true> : normKernel<Centre, false>, grid, block, 0, x, w, b,
         y, s);
}

template <bool Centre>
void gradInput(const CudaArgs& args) {
  NormRows a = normGradInput(args);
  AnyFloats x = anyFloats(args, 0), w = anyFloats(args, 1), dy = anyFloats(args, 2);
  if (args[0].count == 0) return;
  Shape s = shapeOf(a);
  AnyOut dx(a.out);
  bool kept = keepable(s) && x.packs() && w.packs() && dy.packs() && dx.packs();
  dim3 block = blockFor(s, kept), grid(blocksFor(s.rows, block.y));
  launch(args, kept ? gradInputKernel<Centre, true> : gradInputKernel<Centre, false>, grid, block,
         0, x, w, dy, dx, s);
}

template <bool Centre>
void gradWeight(const CudaArgs& args) {
  Shape s = shapeOf(normGradWeight(args));
  AnyFloats x = anyFloats(args, 0), dy = anyFloats(args, 1);
  const View& dw = args[2];
  if (s.n == 0) return;
  if (s.rows == 0) {
    cudaCheck(args.kernel, cudaMemsetAsync(dw.data, 0, dw.bytes(), args.device.stream));
    return;
  }
  bool kept = keepable(s) && x.packs() && dy.packs();
  dim3 block(blockFor(s, kept).x);
  // At least eight rows a block, and no more blocks than fill the card.
  int64_t wish = (s.rows + 7) / 8, most = args.device.multiprocessors * (2048 / block.x / 2);
  int64_t blocks = wish < most ? wish : most;
  Workspace held(args.device.memory, static_cast<uint64_t>(blocks * s.n) * sizeof(float));
  launch(args, kept ? gradWeightKernel<Centre, true> : gradWeightKernel<Centre, false>,
         dim3(static_cast<unsigned>(blocks)), block, 0, x, dy, held.as<float>(), s);
  sumOfRows(args, held.as<float>(), blocks, s.n, dw.as<float>());
}

}  // namespace

void registerNorm(CudaRegistry& r) {
  r.push_back({"rmsNorm", norm<false>});
  r.push_back({"rmsNorm.gradInput", gradInput<false>});
  r.push_back({"rmsNorm.gradWeight", gradWeight<false>});
  r.push_back({"layerNorm", norm<true>});
  r.push_back({"layerNorm.gradInput", gradInput<true>});
  r.push_back({"layerNorm.gradWeight", gradWeight<true>});
}

}  // namespace lowrank

// The gradient of attention: the probabilities of a tile again, from the log-sum-exp. One pass over
// the queries for each tile of keys gives dk and dv, one over the keys for each tile of queries dq,
// so that every sum has one owner and one order.
#include <algorithm>

#include "attention_mma.cuh"

namespace lowrank {

namespace {

constexpr int kRowsPerBlock = 8;  // of delta, a warp each

struct Gradient {
  Attend s;
  Heads y, dy;
  const void* lse;
  DType lseType;
  float* delta;  // [B, H, T]: Σ dy ⊙ y
  AnyOut dq, dk, dv;
};

__global__ void __launch_bounds__(kRowsPerBlock* kWarp) deltaKernel(Gradient g) {
  const Attend& s = g.s;
  int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (row >= s.b * s.h * s.t) return;
  int64_t batch = row / (s.h * s.t), head = row / s.t % s.h, query = row % s.t;
  int64_t at = ((batch * s.t + query) * s.h + head) * s.d;
  float sum = 0;
  for (int64_t c = threadIdx.x % kWarp; c < s.d; c += kWarp) {
    sum = fmaf(oneAt(g.y.data, g.y.type, at + c), oneAt(g.dy.data, g.dy.type, at + c), sum);
  }
  sum = warpSum(sum);
  if (threadIdx.x % kWarp == 0) g.delta[row] = sum;
}

// Queries [q0, q0 + 64) of a head against keys [k0, k0 + 64): where they lie.
struct Meeting {
  int64_t batch, head, q0, k0;
  Rows q, dy, k, v;
};

__device__ __forceinline__ Meeting meet(const Gradient& g, int64_t batch, int64_t head, int64_t q0,
                                        int64_t k0) {
  const Attend& s = g.s;
  int64_t queries = min(static_cast<int64_t>(kTile), s.t - q0);
  int64_t keys = max(static_cast<int64_t>(0), min(static_cast<int64_t>(kTile), s.length - k0));
  int64_t queryAt = ((batch * s.t + q0) * s.h + head) * s.d;
  int64_t keyAt = ((batch * s.s + k0) * s.g + head / (s.h / s.g)) * s.d;
  return {batch,
          head,
          q0,
          k0,
          {s.q, queryAt, s.queryRow(), queries, s.d},
          {g.dy, queryAt, s.queryRow(), queries, s.d},
          {s.k, keyAt, s.keyRow(), keys, s.d},
          {s.v, keyAt, s.keyRow(), keys, s.d}};
}

// P = exp(scale q k' - lse) and dS = scale P (dy v' - delta): four queries by four keys a thread.
__device__ __forceinline__ void probabilities(const Gradient& g, const Meeting& m, bool whole,
                                              float (*slices)[kSlice][kStride], float (&p)[4][4],
                                              float (&ds)[4][4]) {
  const Attend& s = g.s;
  int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) p[i][j] = ds[i][j] = 0;
  }
  addScores(m.q, m.k, slices[0], slices[1], p);
  addScores(m.dy, m.v, slices[0], slices[1], ds);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int64_t query = m.q0 + ty * 4 + i, at = (m.batch * s.h + m.head) * s.t + query;
    bool there = query < s.t;
    float lse = there ? oneAt(g.lse, g.lseType, at) : -INFINITY;
    float delta = there ? g.delta[at] : 0.0f;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      bool seen = lse != -INFINITY && (whole || s.sees(m.batch, query, m.k0 + tx * 4 + j));
      p[i][j] = seen ? expf(s.scale * p[i][j] - lse) : 0.0f;
      ds[i][j] = seen ? s.scale * p[i][j] * (ds[i][j] - delta) : 0.0f;
    }
  }
}

// dv += P' dy, dk += dS' q: a block for 64 keys of a key head and W channels.
template <int W>
__global__ void __launch_bounds__(kAttendThreads, 1) keyGradKernel(Gradient g) {
  SHARED(float, weights, [kTile][kStride]);  // [query][key]
  SHARED(float, slices, [2][kSlice][kStride]);
  const Attend& s = g.s;
  int64_t groups = s.b * s.g, k0 = blockIdx.x / groups * kTile, batch = blockIdx.x % groups / s.g;
  int64_t group = blockIdx.x % s.g, ratio = s.h / s.g, c0 = static_cast<int64_t>(blockIdx.y) * W;
  int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  float dk[4][W / 16] = {}, dv[4][W / 16] = {};
  for (int64_t head = group * ratio; head < (group + 1) * ratio; head++) {
    for (int64_t q0 = 0; q0 < s.t; q0 += kTile) {
      int64_t last = min(q0 + kTile, s.t) - 1;
      if (s.first(q0) >= k0 + kTile || s.last(last) <= k0) continue;
      Meeting m = meet(g, batch, head, q0, k0);
      bool whole = s.whole(q0, k0);
      float p[4][4], ds[4][4];
      probabilities(g, m, whole, slices, p, ds);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 4; i++) {
        *reinterpret_cast<float4*>(&weights[ty * 4 + i][tx * 4]) =
            make_float4(p[i][0], p[i][1], p[i][2], p[i][3]);
      }
      addWeighted<W>(weights, m.dy, c0, &slices[0][0][0], !whole, dv);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 4; i++) {
        *reinterpret_cast<float4*>(&weights[ty * 4 + i][tx * 4]) =
            make_float4(ds[i][0], ds[i][1], ds[i][2], ds[i][3]);
      }
      addWeighted<W>(weights, m.q, c0, &slices[0][0][0], !whole, dk);
    }
  }
  int64_t keyAt = ((batch * s.s + k0) * s.g + group) * s.d, keys = min(k0 + kTile, s.s) - k0;
  const float one[4] = {1, 1, 1, 1};
  storeRows<W>(g.dk.from(keyAt), s.keyRow(), keys, c0, s.d, one, dk);
  storeRows<W>(g.dv.from(keyAt), s.keyRow(), keys, c0, s.d, one, dv);
}

// dq += dS k: a block for 64 queries of a head and W channels.
template <int W>
__global__ void __launch_bounds__(kAttendThreads, 2) queryGradKernel(Gradient g) {
  SHARED(float, weights, [kTile][kStride]);  // [key][query]
  SHARED(float, slices, [2][kSlice][kStride]);
  const Attend& s = g.s;
  int64_t tiles = (s.t + kTile - 1) / kTile, heads = s.b * s.h;
  int64_t q0 = (tiles - 1 - blockIdx.x / heads) * kTile, c0 = static_cast<int64_t>(blockIdx.y) * W;
  int64_t batch = blockIdx.x % heads / s.h, head = blockIdx.x % s.h;
  int64_t queries = min(static_cast<int64_t>(kTile), s.t - q0);
  int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  float dq[4][W / 16] = {};
  int64_t end = s.last(q0 + queries - 1);
  for (int64_t k0 = s.first(q0) / kTile * kTile; k0 < end; k0 += kTile) {
    Meeting m = meet(g, batch, head, q0, k0);
    bool whole = s.whole(q0, k0);
    float p[4][4], ds[4][4];
    probabilities(g, m, whole, slices, p, ds);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 4; j++) {
      *reinterpret_cast<float4*>(&weights[tx * 4 + j][ty * 4]) =
          make_float4(ds[0][j], ds[1][j], ds[2][j], ds[3][j]);
    }
    addWeighted<W>(weights, m.k, c0, &slices[0][0][0], !whole, dq);
  }
  const float one[4] = {1, 1, 1, 1};
  int64_t queryAt = ((batch * s.t + q0) * s.h + head) * s.d;
  storeRows<W>(g.dq.from(queryAt), s.queryRow(), queries, c0, s.d, one, dq);
}

}  // namespace

void attentionGrad(const CudaArgs& args) {
  size_t at;
  Gradient g = {};
  g.s = {attentionGradCall(args, at), headsOf(args, 0), headsOf(args, 1), headsOf(args, 2)};
  const Attend& s = g.s;
  g.y = headsOf(args, at);
  g.lse = args[at + 1].data;
  g.lseType = args[at + 1].dtype;
  g.dy = headsOf(args, at + 2);
  g.dq = AnyOut(args[at + 3]);
  g.dk = AnyOut(args[at + 4]);
  g.dv = AnyOut(args[at + 5]);
  int64_t rows = s.b * s.h * s.t;
  Workspace held(args.device.memory, static_cast<uint64_t>(rows) * sizeof(float));
  g.delta = held.as<float>();
  dim3 threads(kAttendThreads);
  if (rows > 0 && s.d > 0) {
    launch(args, deltaKernel, dim3(blocksFor(rows, kRowsPerBlock)), dim3(kRowsPerBlock * kWarp), 0,
           g);
    if (attentionGradMma(args, s, g.dy, g.lse, g.lseType, g.delta, g.dq, g.dk, g.dv)) return;
    unsigned blocks = blocksFor((s.t + kTile - 1) / kTile * s.b * s.h, 1);
    if (s.d <= 64) {
      launch(args, queryGradKernel<64>, dim3(blocks), threads, 0, g);
    } else {
      launch(args, queryGradKernel<128>, dim3(blocks, blocksFor(s.d, 128)), threads, 0, g);
    }
  }
  if (args[1].count == 0) return;
  unsigned blocks = blocksFor((s.s + kTile - 1) / kTile * s.b * s.g, 1);
  if (s.d <= 64) {
    launch(args, keyGradKernel<64>, dim3(blocks), threads, 0, g);
  } else {
    launch(args, keyGradKernel<128>, dim3(blocks, blocksFor(s.d, 128)), threads, 0, g);
  }
}

}  // namespace lowrank

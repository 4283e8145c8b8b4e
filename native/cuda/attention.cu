// Attention by tiles of queries and keys with a running softmax; only the log-sum-exp is kept.
#include <algorithm>

#include "attention_mma.cuh"

namespace lowrank {

namespace {

// A block for 64 queries of a head and W channels of y, beginning with the queries that see most.
template <int W>
__global__ void __launch_bounds__(kAttendThreads, W == 64 ? 2 : 1)
    attentionKernel(Attend s, AnyOut y, float* lse) {
  SHARED(float, weights, [kTile][kStride]);  // [key][query]
  SHARED(float, slices, [2][kSlice][kStride]);
  int64_t tiles = (s.t + kTile - 1) / kTile, heads = s.b * s.h;
  int64_t q0 = (tiles - 1 - blockIdx.x / heads) * kTile, c0 = static_cast<int64_t>(blockIdx.y) * W;
  int64_t batch = blockIdx.x % heads / s.h, head = blockIdx.x % s.h, group = head / (s.h / s.g);
  int64_t queries = min(static_cast<int64_t>(kTile), s.t - q0);
  int64_t queryAt = ((batch * s.t + q0) * s.h + head) * s.d;
  Rows q = {s.q, queryAt, s.queryRow(), queries, s.d};
  int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  float top[4], sum[4] = {}, out[4][W / 16] = {};
#pragma unroll
  for (int i = 0; i < 4; i++) top[i] = -INFINITY;

  int64_t end = s.last(q0 + queries - 1);
  for (int64_t k0 = s.first(q0) / kTile * kTile; k0 < end; k0 += kTile) {
    int64_t keys = min(static_cast<int64_t>(kTile), s.length - k0);
    int64_t keyAt = ((batch * s.s + k0) * s.g + group) * s.d;
    Rows k = {s.k, keyAt, s.keyRow(), keys, s.d}, v = {s.v, keyAt, s.keyRow(), keys, s.d};
    bool whole = s.whole(q0, k0);
    float score[4][4] = {};
    addScores(q, k, slices[0], slices[1], score);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float best = -INFINITY;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        score[i][j] *= s.scale;
        if (!whole && !s.sees(batch, q0 + ty * 4 + i, k0 + tx * 4 + j)) score[i][j] = -INFINITY;
        best = fmaxf(best, score[i][j]);
      }
      best = fmaxf(top[i], rowMax(best));
      // With nothing seen so far the shift is 0 and every weight exp(-inf) = 0.
      float shift = best == -INFINITY ? 0.0f : best;
      float shrink = top[i] == best ? 1.0f : expf(top[i] - best);
      float part = 0;
#pragma unroll
      for (int j = 0; j < 4; j++) part += score[i][j] = expf(score[i][j] - shift);
      sum[i] = sum[i] * shrink + rowSum(part);
      top[i] = best;
#pragma unroll
      for (int j = 0; j < W / 16; j++) out[i][j] *= shrink;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      *reinterpret_cast<float4*>(&weights[tx * 4 + j][ty * 4]) =
          make_float4(score[0][j], score[1][j], score[2][j], score[3][j]);
    }
    addWeighted<W>(weights, v, c0, &slices[0][0][0], !whole, out);
  }

  float factor[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    factor[i] = sum[i] == 0 ? 0.0f : 1 / sum[i];
    if (tx == 0 && c0 == 0 && ty * 4 + i < queries) {
      lse[(batch * s.h + head) * s.t + q0 + ty * 4 + i] =
          sum[i] == 0 ? -INFINITY : top[i] + logf(sum[i]);
    }
  }
  storeRows<W>(y.from(queryAt), s.queryRow(), queries, c0, s.d, factor, out);
}

void attention(const CudaArgs& args) {
  size_t at;
  Attend s = {attentionCall(args, at), headsOf(args, 0), headsOf(args, 1), headsOf(args, 2)};
  AnyOut y(args[at]);
  float* lse = args[at + 1].as<float>();
  int64_t blocks = (s.t + kTile - 1) / kTile * s.b * s.h;
  if (blocks == 0) return;
  // A query alone has sums of another order.
  if (!args.device.batchInvariant && attentionOfOne(args, s, y, lse)) return;
  if (attentionMma(args, s, y, lse)) return;
  if (s.d <= 64) {
    launch(args, attentionKernel<64>, dim3(blocksFor(blocks, 1)), dim3(kAttendThreads), 0, s, y,
           lse);
  } else {
    launch(args, attentionKernel<128>, dim3(blocksFor(blocks, 1), blocksFor(s.d, 128)),
           dim3(kAttendThreads), 0, s, y, lse);
  }
}

}  // namespace

Heads headsOf(const CudaArgs& args, size_t i) {
  const View& x = args.floating(i);
  bool vector =
      x.last() % 4 == 0 && reinterpret_cast<uintptr_t>(x.data) % (4 * dtypeSize(x.dtype)) == 0;
  return {x.data, x.dtype, vector};
}

void registerAttention(CudaRegistry& r) {
  r.push_back({"attention", attention});
  r.push_back({"attention.grad", attentionGrad});
}

}  // namespace lowrank

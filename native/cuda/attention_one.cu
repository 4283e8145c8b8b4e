// Attention of a single query a head, as generation asks for: the keys of a head are shared out
// among blocks, eight lanes take one at a time, and the shares are put together in order.
#include <algorithm>

#include "attention.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 8;  // that share a key
constexpr int kTakers = kThreads / kLanes;
constexpr int64_t kShare = 128;  // keys of a block; more where shares are many
constexpr int64_t kMostShares = 64;

// The largest score, the sum of the weights against it, and the weighted sum of the values.
struct Shares {
  float *top, *sum, *out;  // [B, H, shares], the same, and [.., D]
  int count;
  int64_t keys;  // of a share
};

// Puts `count` of them together for a channel; answers the sum of weights and the largest score.
__device__ __forceinline__ float together(const float* tops, const float* sums, const float* outs,
                                          int count, int64_t step, float& top, float& total) {
  top = -INFINITY;
  for (int i = 0; i < count; i++) top = fmaxf(top, tops[i]);
  float shift = top == -INFINITY ? 0.0f : top, out = 0;
  total = 0;
  for (int i = 0; i < count; i++) {
    float weight = expf(tops[i] - shift);
    total = fmaf(weight, sums[i], total);
    out = fmaf(weight, outs[i * step], out);
  }
  return out;
}

__device__ __forceinline__ void finish(const Attend& s, int64_t head, int channel, float out,
                                       float top, float total, const AnyOut& y, float* lse) {
  y.set(head * s.d + channel, total == 0 ? 0.0f : out / total);
  if (channel == 0) lse[head] = total == 0 ? -INFINITY : top + logf(total);
}

// A block for a share of the keys of one head; a lane has four of every 32 channels, up to DP.
template <int DP>
__global__ void __launch_bounds__(kThreads)
    oneQueryKernel(Attend s, Shares shares, AnyOut y, float* lse) {
  constexpr int kFours = DP / 32;
  SHARED(float, outs, [kTakers][DP]);
  SHARED(float, tops, [kTakers]);
  SHARED(float, sums, [kTakers]);
  int64_t head = blockIdx.x, batch = head / s.h, group = head % s.h / (s.h / s.g);
  int lane = threadIdx.x % kLanes, taker = static_cast<int>(threadIdx.x) / kLanes;
  int64_t begin = s.first(0) + blockIdx.y * shares.keys, end = min(begin + shares.keys, s.last(0));
  float4 q[kFours];
  float out[kFours][4] = {}, top = -INFINITY, sum = 0;
#pragma unroll
  for (int i = 0; i < kFours; i++) {
    int64_t c = i * 32 + lane * 4;
    q[i] = fourAt(s.q.data, s.q.type, head * s.d + c, s.d - c, s.q.vector);
  }
  for (int64_t k0 = begin; k0 < end; k0 += kTakers) {
    int64_t key = k0 + taker, at = ((batch * s.s + key) * s.g + group) * s.d;
    bool seen = key < end && (!s.mask || s.mask[batch * s.s + key] != 0);
    float score = 0;
    float4 v[kFours];
#pragma unroll
    for (int i = 0; i < kFours; i++) {
      int64_t c = i * 32 + lane * 4, valid = seen ? s.d - c : 0;
      float4 k = fourAt(s.k.data, s.k.type, at + c, valid, s.k.vector);
      v[i] = fourAt(s.v.data, s.v.type, at + c, valid, s.v.vector);
      score = fmaf(q[i].x, k.x, score);
      score = fmaf(q[i].y, k.y, score);
      score = fmaf(q[i].z, k.z, score);
      score = fmaf(q[i].w, k.w, score);
    }
    for (int step = kLanes / 2; step > 0; step /= 2) {
      score += __shfl_xor_sync(kAllLanes, score, step);
    }
    score = seen ? score * s.scale : -INFINITY;
    float best = fmaxf(top, score);
    if (!seen) continue;
    float shift = best == -INFINITY ? 0.0f : best;
    float shrink = top == best ? 1.0f : expf(top - shift), weight = expf(score - shift);
    sum = fmaf(sum, shrink, weight);
    top = best;
#pragma unroll
    for (int i = 0; i < kFours; i++) {
      out[i][0] = fmaf(weight, v[i].x, out[i][0] * shrink);
      out[i][1] = fmaf(weight, v[i].y, out[i][1] * shrink);
      out[i][2] = fmaf(weight, v[i].z, out[i][2] * shrink);
      out[i][3] = fmaf(weight, v[i].w, out[i][3] * shrink);
    }
  }
#pragma unroll
  for (int i = 0; i < kFours; i++) {
    *reinterpret_cast<float4*>(&outs[taker][i * 32 + lane * 4]) =
        make_float4(out[i][0], out[i][1], out[i][2], out[i][3]);
  }
  if (lane == 0) {
    tops[taker] = top;
    sums[taker] = sum;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < s.d; c += kThreads) {
    float total, result = together(tops, sums, &outs[0][c], kTakers, DP, top, total);
    if (shares.count == 1) {
      finish(s, head, c, result, top, total, y, lse);
      continue;
    }
    int64_t share = head * shares.count + blockIdx.y;
    shares.out[share * s.d + c] = result;
    if (c == 0) {
      shares.top[share] = top;
      shares.sum[share] = total;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    sharesKernel(Attend s, Shares shares, AnyOut y, float* lse) {
  int64_t head = blockIdx.x, first = head * shares.count;
  for (int c = threadIdx.x; c < s.d; c += kThreads) {
    float top, total;
    float out = together(shares.top + first, shares.sum + first, shares.out + first * s.d + c,
                         shares.count, s.d, top, total);
    finish(s, head, c, out, top, total, y, lse);
  }
}

}  // namespace

bool attentionOfOne(const CudaArgs& args, const Attend& s, AnyOut y, float* lse) {
  if (s.t != 1 || s.d == 0 || s.d > 256) return false;
  int64_t heads = s.b * s.h, keys = s.length;
  if (s.window > 0) keys = std::min(keys, s.window);
  // By the number of keys alone, so that a query's bits do not depend on its neighbours.
  int64_t count = std::max<int64_t>(1, std::min((keys + kShare - 1) / kShare, kMostShares));
  Workspace held = count > 1
                       ? Workspace(args.device.memory,
                                   static_cast<uint64_t>(heads * count * (s.d + 2)) * sizeof(float))
                       : Workspace();
  Shares shares = {};
  shares.count = static_cast<int>(count);
  shares.keys = std::max<int64_t>(1, (keys + count - 1) / count);
  if (count > 1) {
    shares.top = held.as<float>();
    shares.sum = shares.top + heads * count;
    shares.out = shares.sum + heads * count;
  }
  dim3 grid(blocksFor(heads, 1), static_cast<unsigned>(count)), threads(kThreads);
  if (s.d <= 64) {
    launch(args, oneQueryKernel<64>, grid, threads, 0, s, shares, y, lse);
  } else if (s.d <= 128) {
    launch(args, oneQueryKernel<128>, grid, threads, 0, s, shares, y, lse);
  } else {
    launch(args, oneQueryKernel<256>, grid, threads, 0, s, shares, y, lse);
  }
  if (count > 1)
    launch(args, sharesKernel, dim3(blocksFor(heads, 1)), threads, 0, s, shares, y, lse);
  return true;
}

}  // namespace lowrank

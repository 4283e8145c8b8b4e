// The gradient of attention on the tensor cores, in the same two passes as the f32 one. Where keys
// own the sums, scores are computed turned, [keys, queries], so that the weights of a product are
// what the one before left in registers.
#include "attention_mma.cuh"

namespace lowrank {

namespace {

constexpr int kStage = 64;  // queries, or keys, of a tile that belongs to a block

struct Inputs {
  Attend s;
  PackedHeads q, k, v, dy;
  Heads raw;  // dy as it was given
  const void* lse;
  DType lseType;
  const float* delta;
};

// Where the rows of a query head, and of a key head, begin.
template <int DP>
__device__ __forceinline__ int64_t headAt(const PackedHeads& x, int64_t batch, int64_t head) {
  return (batch * x.heads + head) * x.rows * DP;
}

// The log-sum-exp of a query by base 2, so that one that sees nothing weighs nothing, and its
// delta.
__device__ __forceinline__ void rowFacts(const Inputs& in, int64_t at, bool there, float& lse,
                                         float& delta) {
  float natural = there ? oneAt(in.lse, in.lseType, at) : -INFINITY;
  lse = natural == -INFINITY ? INFINITY : natural * kLog2E;
  delta = there ? in.delta[at] : 0.0f;
}

// sum [16 lines from line0 of a, 8·N lines of b] = a b'.
template <int DP, int N>
__device__ __forceinline__ void scores(float (&sum)[N][4], Bf16* a, int line0, Bf16* b) {
#pragma unroll
  for (int j = 0; j < N; j++) sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
#pragma unroll
  for (int i = 0; i < DP / 16; i++) {
    uint32_t left[4];
    leftFragment<DP>(left, a, line0, i);
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      uint32_t right[4];
      rightFragments<DP>(right, b, j * 8, i);
      mmaBf16(sum[j], left, right[0], right[1]);
      mmaBf16(sum[j + 1], left, right[2], right[3]);
    }
  }
}

// The values of dy that packing set to 0, added to dv of the keys that their queries see. NaN in q,
// k or v needs no more: lse, or delta, of the queries that see it has it already.
__device__ __forceinline__ void addUnbounded(const Inputs& in, int64_t batch, int64_t group,
                                             int64_t k0, const AnyOut& dv) {
  const Attend& s = in.s;
  int64_t ratio = s.h / s.g, keys = min(k0 + kStage, s.s) - k0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < keys * s.d; i += kMmaThreads) {
    int64_t key = k0 + i / s.d, c = i % s.d;
    float more = 0;
#pragma unroll 1
    for (int64_t j = 0; j < ratio * s.t; j++) {
      int64_t head = group * ratio + j / s.t, query = j % s.t;
      float x = oneAt(in.raw.data, in.raw.type, ((batch * s.t + query) * s.h + head) * s.d + c);
      if (isUnbounded(x) && s.sees(batch, query, key)) more += widen(narrow<Bf16>(x));
    }
    int64_t at = ((batch * s.s + key) * s.g + group) * s.d + c;
    if (more != 0) dv.set(at, dv[at] + more);
  }
}

// dv += P' dy and dk += dS' q: a block for 64 keys of a key head, a warp for 16 of them; queries
// come by tiles of Q.
template <int DP, int Q>
__global__ void __launch_bounds__(kMmaThreads, 2)
    keyGradMmaKernel(Inputs in, AnyOut dk, AnyOut dv) {
  const Attend& s = in.s;
  DYNAMIC_SHARED(Bf16, memory);
  Bf16 *keys = memory, *values = keys + kStage * DP;
  Bf16 *queries = values + kStage * DP, *grads = queries + 2 * Q * DP;
  float* facts = reinterpret_cast<float*>(grads + 2 * Q * DP);  // [2][lse, delta][Q]
  int64_t groups = s.b * s.g, k0 = blockIdx.x / groups * kStage;
  int64_t batch = blockIdx.x % groups / s.g, group = blockIdx.x % s.g, ratio = s.h / s.g;
  int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  int line0 = static_cast<int>(threadIdx.x) / kWarp * 16;
  float factor = s.scale * kLog2E;

  // The queries that may see one of the keys: tiles [first, last) of each head.
  int64_t tiles = (s.t + Q - 1) / Q, first = 0, last = tiles;
  while (first < tiles && s.last(min((first + 1) * Q, s.t) - 1) <= k0) first++;
  while (last > first && s.first((last - 1) * Q) >= k0 + kStage) last--;
  int64_t each = last - first, steps = each * ratio;

  int64_t present = max(static_cast<int64_t>(0), min(static_cast<int64_t>(kStage), s.length - k0));
  copyTile<DP, kStage>(keys, in.k.data + headAt<DP>(in.k, batch, group) + k0 * DP, present);
  copyTile<DP, kStage>(values, in.v.data + headAt<DP>(in.v, batch, group) + k0 * DP, present);
  auto fetch = [&](int64_t step, int slot) {
    int64_t head = group * ratio + step / each, q0 = (first + step % each) * Q;
    int64_t at = headAt<DP>(in.q, batch, head) + q0 * DP, rows = s.t - q0;
    copyTile<DP, Q>(queries + slot * Q * DP, in.q.data + at, rows);
    copyTile<DP, Q>(grads + slot * Q * DP, in.dy.data + at, rows);
    if (threadIdx.x < Q) {
      int64_t row = (batch * s.h + head) * s.t + q0 + threadIdx.x;
      rowFacts(in, row, static_cast<int64_t>(threadIdx.x) < rows, facts[slot * 2 * Q + threadIdx.x],
               facts[(slot * 2 + 1) * Q + threadIdx.x]);
    }
  };
  if (steps > 0) fetch(0, 0);
  endCopies();

  float dkSum[DP / 8][4] = {}, dvSum[DP / 8][4] = {};
  for (int64_t step = 0; step < steps; step++) {
    int slot = static_cast<int>(step % 2);
    // Who still reads the other slot has passed this barrier's predecessor.
    if (step + 1 < steps) fetch(step + 1, slot ^ 1);
    endCopies();
    copiesLeft<1>();
    __syncthreads();
    int64_t q0 = (first + step % each) * Q;
    Bf16 *q = queries + slot * Q * DP, *dy = grads + slot * Q * DP;
    const float *lse = facts + slot * 2 * Q, *delta = lse + Q;
    float p[Q / 8][4], ds[Q / 8][4];
    scores<DP, Q / 8>(p, keys, line0, q);
    scores<DP, Q / 8>(ds, values, line0, dy);
    bool whole = seesAll(s, q0, Q, k0, kStage);
#pragma unroll
    for (int j = 0; j < Q / 8; j++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int query = j * 8 + t * 2 + e;
        SeenKeys sees = {0, kStage, nullptr};
        if (!whole) sees = seenKeys(s, batch, q0 + query, k0, kStage);
        float shift = lse[query], less = delta[query];
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float& weight = p[j][half * 2 + e];
          float& change = ds[j][half * 2 + e];
          bool seen = whole || sees(line0 + half * 8 + g);
          weight = seen ? fastExp2(weight * factor - shift) : 0.0f;
          change = seen ? weight * (change - less) : 0.0f;
        }
      }
    }
    uint32_t weights[Q / 16][4];
    asFactors<Q / 16>(weights, p);
    addRows<DP, Q / 16>(dvSum, weights, dy);
    asFactors<Q / 16>(weights, ds);
    addRows<DP, Q / 16>(dkSum, weights, q);
    __syncthreads();
  }
  copiesLeft<0>();
  int64_t at = ((batch * s.s + k0 + line0) * s.g + group) * s.d, rows = s.s - k0 - line0;
  const float scale[2] = {s.scale, s.scale}, one[2] = {1, 1};
  storeSums<DP>(dk.from(at), s.keyRow(), rows, s.d, scale, dkSum);
  storeSums<DP>(dv.from(at), s.keyRow(), rows, s.d, one, dvSum);
  bool unbounded = false;
  for (int64_t i = 0; i < ratio; i++) {
    unbounded = unbounded || in.dy.unbounded[batch * s.h + group * ratio + i] != 0;
  }
  if (unbounded) {
    __syncthreads();
    addUnbounded(in, batch, group, k0, dv);
  }
}

// dq += dS k: a block for 64 queries of a head, a warp for 16 of them; keys come by tiles of K.
template <int DP, int K>
__global__ void __launch_bounds__(kMmaThreads, 2) queryGradMmaKernel(Inputs in, AnyOut dq) {
  const Attend& s = in.s;
  DYNAMIC_SHARED(Bf16, memory);
  Bf16 *queries = memory, *grads = queries + kStage * DP;
  Bf16 *keys = grads + kStage * DP, *values = keys + 2 * K * DP;
  int64_t tiles = (s.t + kStage - 1) / kStage, heads = s.b * s.h;
  int64_t q0 = (tiles - 1 - blockIdx.x / heads) * kStage, batch = blockIdx.x % heads / s.h;
  int64_t head = blockIdx.x % s.h, group = head / (s.h / s.g), rows = s.t - q0;
  int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  int line0 = static_cast<int>(threadIdx.x) / kWarp * 16;
  float factor = s.scale * kLog2E, lse[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int64_t query = q0 + line0 + half * 8 + g;
    rowFacts(in, (batch * s.h + head) * s.t + query, query < s.t, lse[half], delta[half]);
  }
  int64_t at = headAt<DP>(in.q, batch, head) + q0 * DP;
  const Bf16* kAt = in.k.data + headAt<DP>(in.k, batch, group);
  const Bf16* vAt = in.v.data + headAt<DP>(in.v, batch, group);
  int64_t begin = s.first(q0) / K * K, end = s.last(min(q0 + kStage, s.t) - 1);
  auto fetch = [&](int64_t k0, int slot) {
    int64_t present = max(static_cast<int64_t>(0), s.length - k0);
    copyTile<DP, K>(keys + slot * K * DP, kAt + k0 * DP, present);
    copyTile<DP, K>(values + slot * K * DP, vAt + k0 * DP, present);
  };
  copyTile<DP, kStage>(queries, in.q.data + at, rows);
  copyTile<DP, kStage>(grads, in.dy.data + at, rows);
  if (begin < end) fetch(begin, 0);
  endCopies();

  float sum[DP / 8][4] = {};
  int slot = 0;
  for (int64_t k0 = begin; k0 < end; k0 += K, slot ^= 1) {
    if (k0 + K < end) fetch(k0 + K, slot ^ 1);
    endCopies();
    copiesLeft<1>();
    __syncthreads();
    Bf16 *k = keys + slot * K * DP, *v = values + slot * K * DP;
    float p[K / 8][4], ds[K / 8][4];
    scores<DP, K / 8>(p, queries, line0, k);
    scores<DP, K / 8>(ds, grads, line0, v);
    bool whole = seesAll(s, q0 + line0, 16, k0, K);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      SeenKeys sees = {0, K, nullptr};
      if (!whole) sees = seenKeys(s, batch, q0 + line0 + half * 8 + g, k0, K);
#pragma unroll
      for (int j = 0; j < K / 8; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float weight = fastExp2(p[j][half * 2 + e] * factor - lse[half]);
          float& change = ds[j][half * 2 + e];
          bool seen = whole || sees(j * 8 + t * 2 + e);
          change = seen ? weight * (change - delta[half]) : 0.0f;
        }
      }
    }
    uint32_t weights[K / 16][4];
    asFactors<K / 16>(weights, ds);
    addRows<DP, K / 16>(sum, weights, k);
    __syncthreads();
  }
  copiesLeft<0>();
  const float scale[2] = {s.scale, s.scale};
  storeSums<DP>(dq.from(((batch * s.t + q0 + line0) * s.h + head) * s.d), s.queryRow(),
                rows - line0, s.d, scale, sum);
}

template <int DP, int N>
void backward(const CudaArgs& args, const Inputs& in, AnyOut dq, AnyOut dk, AnyOut dv) {
  const Attend& s = in.s;
  size_t shared = static_cast<size_t>(2 * kStage + 4 * N) * DP * sizeof(Bf16);
  int64_t keyBlocks = (s.s + kStage - 1) / kStage * s.b * s.g;
  int64_t queryBlocks = (s.t + kStage - 1) / kStage * s.b * s.h;
  if (queryBlocks > 0) {
    launch(args, queryGradMmaKernel<DP, N>, dim3(blocksFor(queryBlocks, 1)), dim3(kMmaThreads),
           shared, in, dq);
  }
  if (keyBlocks > 0) {
    launch(args, keyGradMmaKernel<DP, N>, dim3(blocksFor(keyBlocks, 1)), dim3(kMmaThreads),
           shared + 4 * N * sizeof(float), in, dk, dv);
  }
}

}  // namespace

bool attentionGradMma(const CudaArgs& args, const Attend& s, const Heads& dy, const void* lse,
                      DType lseType, const float* delta, AnyOut dq, AnyOut dk, AnyOut dv) {
  if (!args.device.brain || s.d > kMmaChannels || s.d == 0) return false;
  Memory& memory = args.device.memory;
  Workspace qHeld(memory, packedBytes(s.b, s.t, s.h, s.d));
  Workspace gradHeld(memory, packedBytes(s.b, s.t, s.h, s.d));
  Workspace kHeld(memory, packedBytes(s.b, s.s, s.g, s.d));
  Workspace vHeld(memory, packedBytes(s.b, s.s, s.g, s.d));
  // Flags of dy, and one set for all others, that nobody reads.
  int64_t heads = s.b * s.h;
  Workspace flags(memory, static_cast<uint64_t>(2 * heads) * sizeof(int));
  int *ofDy = flags.as<int>(), *others = ofDy + heads;
  Inputs in = {
      s,
      packHeads(args, s.q, s.b, s.t, s.h, s.d, nullptr, qHeld.as<Bf16>(), others, ofDy, heads),
      packHeads(args, s.k, s.b, s.s, s.g, s.d, s.mask, kHeld.as<Bf16>(), others),
      packHeads(args, s.v, s.b, s.s, s.g, s.d, s.mask, vHeld.as<Bf16>(), others),
      packHeads(args, dy, s.b, s.t, s.h, s.d, nullptr, gradHeld.as<Bf16>(), ofDy),
      dy,
      lse,
      lseType,
      delta};
  if (s.d <= 64) {
    backward<64, 64>(args, in, dq, dk, dv);
  } else {
    backward<128, 32>(args, in, dq, dk, dv);
  }
  return true;
}

}  // namespace lowrank

// Attention on the tensor cores: the running softmax stays in registers, keys and values are copied
// into shared memory a tile ahead.
#include <algorithm>

#include "attention_mma.cuh"

namespace lowrank {

namespace {

constexpr int kPackThreads = 256;
constexpr int kKeys = 64;  // of a tile

// What a packing writes besides the rows.
struct Packing {
  const uint8_t* mask;
  int* unbounded;  // null: NaN and infinities are kept
  int* cleared;    // `clears` numbers to set to 0, or null
  int64_t clears;
};

__global__ void __launch_bounds__(kPackThreads)
    packKernel(Heads x, int64_t b, int64_t rows, int64_t heads, int64_t d, int padded, Packing p,
               Bf16* to) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  if (i < p.clears) p.cleared[i] = 0;
  int chunks = padded / 8;
  int64_t line = i / chunks, c = i % chunks * 8;
  if (line >= b * heads * rows) return;
  int64_t row = line % rows, head = line / rows % heads, batch = line / (rows * heads);
  uint32_t out[4] = {};
  if (!p.mask || p.mask[batch * rows + row] != 0) {
    int64_t at = ((batch * rows + row) * heads + head) * d + c;
    float4 low = fourAt(x.data, x.type, at, d - c, x.vector);
    float4 high = fourAt(x.data, x.type, at + 4, d - c - 4, x.vector);
    float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    bool all = true;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      if (p.unbounded && isUnbounded(v[j])) {
        v[j] = 0;
        all = false;
      }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) out[j] = packBf16(v[2 * j], v[2 * j + 1]);
    // Whoever writes it writes the same.
    if (!all) p.unbounded[batch * heads + head] = 1;
  }
  *reinterpret_cast<uint4*>(to + line * padded + c) = make_uint4(out[0], out[1], out[2], out[3]);
}

// The values that packing set to 0, added for the queries that see them: a weight is positive, so
// that it changes neither NaN nor an infinity.
__device__ __forceinline__ void addUnbounded(const Attend& s, int64_t batch, int64_t head,
                                             int64_t q0, int64_t rows, const AnyOut& y) {
  int64_t group = head / (s.h / s.g);
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < rows * s.d; i += kMmaThreads) {
    int64_t query = q0 + i / s.d, c = i % s.d;
    float more = 0;
#pragma unroll 1
    for (int64_t key = s.first(query); key < s.last(query); key++) {
      float v = oneAt(s.v.data, s.v.type, ((batch * s.s + key) * s.g + group) * s.d + c);
      if (isUnbounded(v) && s.sees(batch, query, key)) more += widen(narrow<Bf16>(v));
    }
    int64_t at = ((batch * s.t + query) * s.h + head) * s.d + c;
    if (more != 0) y.set(at, y[at] + more);
  }
}

// A block for 64·MT queries of a head, a warp for 16·MT of them.
template <int DP, int MT>
__global__ void __launch_bounds__(kMmaThreads, 2)
    attentionMmaKernel(Attend s, PackedHeads q, PackedHeads k, PackedHeads v, AnyOut y,
                       float* lse) {
  constexpr int kQueries = 64 * MT, kSteps = DP / 16, kGroups = kKeys / 8;
  DYNAMIC_SHARED(Bf16, memory);
  Bf16* queries = memory;
  Bf16* keys = queries + kQueries * DP;
  Bf16* values = keys + 2 * kKeys * DP;
  int64_t tiles = (s.t + kQueries - 1) / kQueries, heads = s.b * s.h;
  int64_t q0 = (tiles - 1 - blockIdx.x / heads) * kQueries, batch = blockIdx.x % heads / s.h;
  int64_t head = blockIdx.x % s.h, group = head / (s.h / s.g);
  const Bf16* qAt = q.data + ((batch * s.h + head) * s.t + q0) * DP;
  const Bf16* kAt = k.data + (batch * s.g + group) * s.s * DP;
  const Bf16* vAt = v.data + (batch * s.g + group) * s.s * DP;
  int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  int row0 = static_cast<int>(threadIdx.x) / kWarp * 16 * MT;
  int rows = static_cast<int>(min(static_cast<int64_t>(kQueries), s.t - q0));
  int length = static_cast<int>(s.length);
  int begin = static_cast<int>(s.first(q0)) / kKeys * kKeys;
  int end = static_cast<int>(s.last(q0 + rows - 1));
  // What this warp's own queries see.
  int64_t ownLast = min(q0 + row0 + 16 * MT, s.t) - 1;
  int ownEnd = ownLast < q0 + row0 ? 0 : static_cast<int>(s.last(ownLast));
  int ownBegin = static_cast<int>(s.first(q0 + row0));
  float factor = s.scale * kLog2E;

  copyTile<DP, kQueries>(queries, qAt, rows);
  copyTile<DP, kKeys>(keys, kAt + static_cast<int64_t>(begin) * DP, min(kKeys, length - begin));
  endCopies();
  copyTile<DP, kKeys>(values, vAt + static_cast<int64_t>(begin) * DP, min(kKeys, length - begin));
  endCopies();

  float top[MT][2], sum[MT][2] = {}, out[MT][DP / 8][4] = {};
  uint32_t left[MT][kSteps][4];
#pragma unroll
  for (int m = 0; m < MT; m++) top[m][0] = top[m][1] = -INFINITY;
  int now = 0;
  for (int k0 = begin; k0 < end; k0 += kKeys, now ^= 1) {
    int next = k0 + kKeys, more = max(0, length - next);
    copiesLeft<1>();
    __syncthreads();
    if (next < end)
      copyTile<DP, kKeys>(keys + (now ^ 1) * kKeys * DP, kAt + static_cast<int64_t>(next) * DP,
                          more);
    endCopies();
    if (k0 == begin) {
#pragma unroll
      for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int i = 0; i < kSteps; i++) {
          leftFragment<DP>(left[m][i], queries, row0 + m * 16, i);
        }
      }
    }
    bool seen = k0 < ownEnd && next > ownBegin;
    bool whole = seesAll(s, q0 + row0, 16 * MT, k0, kKeys);
    uint32_t weights[MT][kKeys / 16][4];
    if (seen) {
      float score[MT][kGroups][4] = {};
      Bf16* tile = keys + now * kKeys * DP;
#pragma unroll
      for (int i = 0; i < kSteps; i++) {
#pragma unroll
        for (int j = 0; j < kGroups; j += 2) {
          uint32_t b[4];
          rightFragments<DP>(b, tile, j * 8, i);
#pragma unroll
          for (int m = 0; m < MT; m++) {
            mmaBf16(score[m][j], left[m][i], b[0], b[1]);
            mmaBf16(score[m][j + 1], left[m][i], b[2], b[3]);
          }
        }
      }
#pragma unroll
      for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          int64_t query = q0 + row0 + m * 16 + half * 8 + g;
          SeenKeys sees = {0, kKeys, nullptr};
          if (!whole) sees = seenKeys(s, batch, query, k0, kKeys);
          float best = -INFINITY;
#pragma unroll
          for (int j = 0; j < kGroups; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
              float& x = score[m][j][half * 2 + e];
              x *= factor;
              if (!whole && !sees(j * 8 + t * 2 + e)) x = -INFINITY;
              best = fmaxf(best, x);
            }
          }
          best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
          best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
          best = fmaxf(best, top[m][half]);
          // With nothing seen so far the shift is 0 and every weight 2^-inf = 0.
          float shift = best == -INFINITY ? 0.0f : best;
          float shrink = top[m][half] == best ? 1.0f : fastExp2(top[m][half] - best);
          float part = 0;
#pragma unroll
          for (int j = 0; j < kGroups; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
              float& x = score[m][j][half * 2 + e];
              part += x = fastExp2(x - shift);
            }
          }
          sum[m][half] = sum[m][half] * shrink + part;
          top[m][half] = best;
#pragma unroll
          for (int c = 0; c < DP / 8; c++) {
            out[m][c][half * 2] *= shrink;
            out[m][c][half * 2 + 1] *= shrink;
          }
        }
        asFactors<kKeys / 16>(weights[m], score[m]);
      }
    }
    copiesLeft<1>();
    __syncthreads();
    if (next < end)
      copyTile<DP, kKeys>(values + (now ^ 1) * kKeys * DP, vAt + static_cast<int64_t>(next) * DP,
                          more);
    endCopies();
    if (!seen) continue;
    Bf16* tile = values + now * kKeys * DP;
#pragma unroll
    for (int i = 0; i < kKeys / 16; i++) {
#pragma unroll
      for (int c = 0; c < DP / 8; c += 2) {
        uint32_t b[4];
        turnedFragments<DP>(b, tile, i * 16, c);
#pragma unroll
        for (int m = 0; m < MT; m++) {
          mmaBf16(out[m][c], weights[m][i], b[0], b[1]);
          mmaBf16(out[m][c + 1], weights[m][i], b[2], b[3]);
        }
      }
    }
  }
  copiesLeft<0>();

#pragma unroll
  for (int m = 0; m < MT; m++) {
    int64_t query = q0 + row0 + m * 16;
    float shares[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float total = sum[m][half];
      total += __shfl_xor_sync(kAllLanes, total, 1);
      total += __shfl_xor_sync(kAllLanes, total, 2);
      shares[half] = total == 0 ? 0.0f : 1 / total;
      int64_t own = query + half * 8 + g;
      if (t == 0 && own < s.t) {
        lse[(batch * s.h + head) * s.t + own] =
            total == 0 ? -INFINITY : (top[m][half] + log2f(total)) * kLn2;
      }
    }
    storeSums<DP>(y.from(((batch * s.t + query) * s.h + head) * s.d), s.queryRow(), s.t - query,
                  s.d, shares, out[m]);
  }
  if (v.unbounded[batch * s.g + group] != 0) {
    __syncthreads();
    addUnbounded(s, batch, head, q0, rows, y);
  }
}

template <int DP, int MT>
void forward(const CudaArgs& args, const Attend& s, PackedHeads q, PackedHeads k, PackedHeads v,
             AnyOut y, float* lse) {
  int64_t blocks = (s.t + 64 * MT - 1) / (64 * MT) * s.b * s.h;
  size_t shared = static_cast<size_t>(64 * MT + 4 * kKeys) * DP * sizeof(Bf16);
  launch(args, attentionMmaKernel<DP, MT>, dim3(blocksFor(blocks, 1)), dim3(kMmaThreads), shared, s,
         q, k, v, y, lse);
}

}  // namespace

PackedHeads packHeads(const CudaArgs& args, const Heads& x, int64_t b, int64_t rows, int64_t heads,
                      int64_t d, const uint8_t* mask, Bf16* to, int* unbounded, int* cleared,
                      int64_t clears) {
  int padded = static_cast<int>(paddedChannels(d));
  int64_t pieces = std::max(b * rows * heads * (padded / 8), clears);
  if (pieces > 0) {
    launch(args, packKernel, dim3(blocksFor(pieces, kPackThreads)), dim3(kPackThreads), 0, x, b,
           rows, heads, d, padded, Packing{mask, unbounded, cleared, clears}, to);
  }
  return {to, heads, rows, unbounded};
}

bool attentionMma(const CudaArgs& args, const Attend& s, AnyOut y, float* lse) {
  if (!args.device.brain || s.d > kMmaChannels || s.d == 0) return false;
  Memory& memory = args.device.memory;
  Workspace qHeld(memory, packedBytes(s.b, s.t, s.h, s.d));
  Workspace kHeld(memory, packedBytes(s.b, s.s, s.g, s.d));
  Workspace vHeld(memory, packedBytes(s.b, s.s, s.g, s.d));
  Workspace flags(memory, static_cast<uint64_t>(s.b * s.g) * sizeof(int));
  int* unbounded = flags.as<int>();
  // Scores of NaN are seen or not one by one: q and k stay as they are.
  PackedHeads q = packHeads(args, s.q, s.b, s.t, s.h, s.d, nullptr, qHeld.as<Bf16>(), nullptr,
                            unbounded, s.b * s.g);
  PackedHeads k = packHeads(args, s.k, s.b, s.s, s.g, s.d, s.mask, kHeld.as<Bf16>());
  PackedHeads v = packHeads(args, s.v, s.b, s.s, s.g, s.d, s.mask, vHeld.as<Bf16>(), unbounded);
  if (s.d <= 64) {
    forward<64, 2>(args, s, q, k, v, y, lse);
  } else {
    forward<128, 1>(args, s, q, k, v, y, lse);
  }
  return true;
}

}  // namespace lowrank

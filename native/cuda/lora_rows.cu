// LoRA's branch on a batch of which each row names its adapter. A block takes 16 rows of a segment
// through both products of rank r, and what lies between stays in shared memory.
#include "lora_rows.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;
constexpr int kRows = 16;    // of a segment in a block
constexpr int kRanks = 256;  // of an adapter that are in shared memory at once

// h[k][row] for ranks [r0, r0 + ranks): a warp for two rows and eight ranks.
__device__ __forceinline__ void rankDown(const Branch& m, const Segment& s, int64_t row0,
                                         int64_t r0, int ranks, float (*h)[kRows]) {
  int lane = threadIdx.x % kWarp, pair = static_cast<int>(threadIdx.x) / kWarp * 2;
  int64_t row = row0 + pair, end = s.from + s.rows;
  if (row >= end) return;
  for (int k0 = 0; k0 < ranks; k0 += 8) {
    float sum[2][8] = {};
    for (int64_t c = lane * 4; c < m.deep; c += 4 * kWarp) {
      float4 x[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int64_t valid = row + i < end ? m.deep - c : 0;
        x[i] = fourAt(m.x, m.xType, (row + i) * m.deep + c, valid, m.vectorX);
      }
#pragma unroll
      for (int k = 0; k < 8; k++) {
        int64_t valid = k0 + k < ranks ? m.deep - c : 0;
        float4 a = fourAt(s.down.data, s.down.type, (r0 + k0 + k) * s.down.rankStep + c, valid,
                          s.down.vector);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          sum[i][k] = fmaf(x[i].x, a.x, sum[i][k]);
          sum[i][k] = fmaf(x[i].y, a.y, sum[i][k]);
          sum[i][k] = fmaf(x[i].z, a.z, sum[i][k]);
          sum[i][k] = fmaf(x[i].w, a.w, sum[i][k]);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < 8; k++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float total = warpSum(sum[i][k]);
        if (lane == 0 && k0 + k < ranks) h[k0 + k][pair + i] = s.scale * total;
      }
    }
  }
}

// z += h up for a block's rows and ranks; the first ranks begin with the base.
__device__ __forceinline__ void rankUp(const Branch& m, const Segment& s, int64_t row0, int rows,
                                       int64_t r0, int ranks, const float (*h)[kRows]) {
  for (int64_t column = threadIdx.x; column < m.cols; column += kThreads) {
    float sum[kRows];
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      int64_t at = (row0 + i) * m.cols + column;
      sum[i] = 0;
      if (i < rows && r0 > 0) {
        sum[i] = m.z[at];
      } else if (i < rows && m.base) {
        sum[i] = oneAt(m.base, m.baseType, at);
      }
    }
    for (int k = 0; k < ranks; k += 4) {
      float weights[4];
      if (s.up.rankStep == 1) {
        float4 b =
            fourAt(s.up.data, s.up.type, column * s.up.colStep + r0 + k, ranks - k, s.up.vector);
        weights[0] = b.x;
        weights[1] = b.y;
        weights[2] = b.z;
        weights[3] = b.w;
      } else {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          int64_t at = (r0 + k + j) * s.up.rankStep + column;
          weights[j] = k + j < ranks ? oneAt(s.up.data, s.up.type, at) : 0.0f;
        }
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (k + j >= ranks) break;
#pragma unroll
        for (int i = 0; i < kRows; i++) sum[i] = fmaf(h[k + j][i], weights[j], sum[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      if (i < rows) m.z.set((row0 + i) * m.cols + column, sum[i]);
    }
  }
}

__global__ void __launch_bounds__(kThreads) branchKernel(Launch<Branch> l) {
  SHARED(float, h, [kRanks][kRows]);
  const Branch& m = l.task;
  const Segment& s = l.segments[blockIdx.y];
  int64_t row0 = s.from + static_cast<int64_t>(blockIdx.x) * kRows;
  if (row0 >= s.from + s.rows) return;
  int rows = static_cast<int>(min(static_cast<int64_t>(kRows), s.from + s.rows - row0));
  for (int64_t r0 = 0; r0 == 0 || r0 < s.rank; r0 += kRanks) {
    int ranks = static_cast<int>(min(static_cast<int64_t>(kRanks), s.rank - r0));
    if (r0 > 0) __syncthreads();
    if (ranks > 0) rankDown(m, s, row0, r0, ranks, h);
    __syncthreads();
    // Behind the adapter's rank h is 0.
    int64_t width = m.h ? min(static_cast<int64_t>(kRanks), m.hWidth - r0) : 0;
    if (r0 + kRanks >= s.rank && m.h) width = m.hWidth - r0;
    for (int64_t v = threadIdx.x; v < rows * width; v += kThreads) {
      int64_t i = v / width, k = v % width;
      m.h[(row0 + i) * m.hWidth + r0 + k] = k < ranks ? h[k][i] : 0.0f;
    }
    if (m.z.data) rankUp(m, s, row0, rows, r0, ranks, h);
  }
}

Side sideOfB(const View& b) { return {b.data, b.dtype, 1, b.dims[1], fours(b, b.dims[1])}; }

// z = y + h B_g' with h = s_g (x A_g'), for the adapter g of each row of the batch.
void addLowRankRows(const CudaArgs& args) {
  EXPECT(args, args.count >= 3, "y, x, pairs of A and B, z and maybe h",
         std::to_string(args.count) + " tensors");
  size_t adapters = (args.count - 3) / 2, zAt = 2 + 2 * adapters;
  const View &y = args[0], &x = args[1], &z = args.activations(zAt);
  checkBatch(args, y, x, "y [B, .., O] and x [B, .., I]");
  EXPECT(args, isFloat(x.dtype), "tensor 1 of f32, f16 or bf16", x.describe());
  EXPECT(args, isFloat(y.dtype), "tensor 0 of f32, f16 or bf16", y.describe());
  args.sameShape(0, zAt);
  int64_t batch = x.dims[0], in = x.last(), out = y.last(), most = 0;
  EXPECT(args, args.attrCount == adapters + static_cast<size_t>(batch),
         "a scale for each adapter and an adapter for each row",
         std::to_string(args.attrCount) + " attributes");
  for (size_t i = 0; i < adapters; i++) {
    int64_t r = -1;
    checkSide(args, 2 + 2 * i, r, in, true);
    checkSide(args, 3 + 2 * i, r, out, false);
    most = std::max(most, r);
  }
  Branch m = {};
  if (args.count > zAt + 1) {
    const View& h = args.out(zAt + 1);
    checkBatch(args, x, h, "x [B, .., I] and h [B, .., R]");
    EXPECT(args, h.last() == most, "h of the largest rank, " + std::to_string(most), h.describe());
    m.h = h.as<float>();
    m.hWidth = most;
  }
  std::vector<Segment> segments =
      segmentsOf(args, adapters, adapters, batch, batch > 0 ? x.rows() / batch : 0);
  for (Segment& s : segments) {
    if (s.slot < 0) continue;
    size_t g = static_cast<size_t>(s.slot);
    s.down = sideOfA(args[2 + 2 * g]);
    s.up = sideOfB(args[3 + 2 * g]);
    s.rank = args[2 + 2 * g].dims[0];
    s.scale = static_cast<float>(args.attrs[g]);
  }
  m.x = x.data;
  m.xType = x.dtype;
  m.vectorX = fours(x, in);
  m.base = y.data;
  m.baseType = y.dtype;
  m.z = AnyOut(z);
  m.deep = in;
  m.cols = out;
  runBranch(args, segments, m);
}

}  // namespace

Side sideOfA(const View& a) { return {a.data, a.dtype, a.dims[1], 1, fours(a, a.dims[1])}; }

std::vector<Segment> segmentsOf(const CudaArgs& args, size_t adapters, size_t first, int64_t batch,
                                int64_t each) {
  std::vector<Segment> segments;
  for (int64_t i = 0; i < batch; i++) {
    int64_t group =
        args.integer(first + static_cast<size_t>(i), -1, static_cast<int64_t>(adapters) - 1);
    if (segments.empty() || segments.back().slot != group) {
      segments.push_back({});
      segments.back().from = i * each;
      segments.back().slot = group;
    }
    segments.back().rows += each;
  }
  return segments;
}

void runBranch(const CudaArgs& args, const std::vector<Segment>& segments, const Branch& task) {
  byLaunch(segments, task, [&](const Launch<Branch>& l, unsigned count, int64_t longest) {
    launch(args, branchKernel, dim3(blocksFor(longest, kRows), count), dim3(kThreads), 0, l);
  });
}

void registerLoraRows(CudaRegistry& r) {
  r.push_back({"addLowRankRows", addLowRankRows});
  r.push_back({"addLowRankRows.grad", addLowRankRowsGrad});
}

}  // namespace lowrank

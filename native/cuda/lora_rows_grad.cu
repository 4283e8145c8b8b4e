// The gradients of LoRA's branches. Those of A and B are summed by parts of the adapter's own rows,
// wherever they stand in the batch, and the parts in order.
#include "lora_rows.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;
constexpr int kOuterThreads = 128;  // each four columns of a gradient
constexpr int kOuterCols = 4 * kOuterThreads, kOuterRanks = 8;
constexpr int kPart = 64;  // rows of a part of a gradient

// parts[slot][k][column] = Σ side[row][k] · wide[row][column] over the rows of a part.
struct Outer {
  const void* wide;
  DType type;
  bool vector;
  const float* side;
  int64_t cols, sideWidth, most;
  float* parts;
};

__global__ void __launch_bounds__(kOuterThreads) outerKernel(Launch<Outer> l) {
  SHARED(float, sides, [kPart][kOuterRanks]);
  const Outer& m = l.task;
  const Segment& s = l.segments[blockIdx.y];
  int64_t across = (m.cols + kOuterCols - 1) / kOuterCols;
  int64_t part = s.own / kPart + blockIdx.x / across, first = part * kPart, end = first + kPart;
  if (first >= s.own + s.rows) return;
  // A part belongs to the segment where it begins, or goes on from what an earlier launch left.
  bool begun = first < s.own;
  if (begun && blockIdx.y > 0 && l.segments[blockIdx.y - 1].slot == s.slot) return;
  int64_t column = (blockIdx.x % across * kOuterThreads + threadIdx.x) * 4;
  float* to = m.parts + (s.slot + part) * m.most * m.cols;
  for (int64_t k0 = 0; k0 < s.rank; k0 += kOuterRanks) {
    float sum[kOuterRanks][4] = {};
#pragma unroll
    for (int k = 0; k < kOuterRanks; k++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        bool there = begun && k0 + k < s.rank && column + j < m.cols;
        if (there) sum[k][j] = to[(k0 + k) * m.cols + column + j];
      }
    }
    for (unsigned n = blockIdx.y; n < l.count; n++) {
      const Segment& piece = l.segments[n];
      if (piece.slot != s.slot || piece.own >= end) break;
      int64_t skipped = max(static_cast<int64_t>(0), first - piece.own);
      int64_t row0 = piece.from + skipped;
      int rows = static_cast<int>(min(piece.rows, end - piece.own) - skipped);
      __syncthreads();
      for (int v = threadIdx.x; v < rows * kOuterRanks; v += kOuterThreads) {
        int64_t k = k0 + v % kOuterRanks, row = row0 + v / kOuterRanks;
        sides[v / kOuterRanks][v % kOuterRanks] = k < s.rank ? m.side[row * m.sideWidth + k] : 0.0f;
      }
      __syncthreads();
#pragma unroll 4
      for (int i = 0; i < rows; i++) {
        float4 x = fourAt(m.wide, m.type, (row0 + i) * m.cols + column, m.cols - column, m.vector);
#pragma unroll
        for (int k = 0; k < kOuterRanks; k++) {
          float w = sides[i][k];
          sum[k][0] = fmaf(w, x.x, sum[k][0]);
          sum[k][1] = fmaf(w, x.y, sum[k][1]);
          sum[k][2] = fmaf(w, x.z, sum[k][2]);
          sum[k][3] = fmaf(w, x.w, sum[k][3]);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kOuterRanks; k++) {
      if (k0 + k >= s.rank) break;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (column + j < m.cols) to[(k0 + k) * m.cols + column + j] = sum[k][j];
      }
    }
  }
}

// A gradient from its parts [first, first + count): element (k, i) at k·rankStep + i·colStep.
struct Settled {
  const float* parts;
  float* to;
  int64_t first, count, rank, cols, most;
  int64_t rankStep, colStep;
  bool add;
};

struct SettledLaunch {
  Settled all[kSegments];
};

__global__ void __launch_bounds__(kThreads) settleKernel(SettledLaunch l) {
  const Settled& g = l.all[blockIdx.y];
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= g.rank * g.cols) return;
  int64_t k = i / g.cols, column = i % g.cols;
  const float* from = g.parts + g.first * g.most * g.cols + k * g.cols + column;
  float sum = 0;
  for (int64_t p = 0; p < g.count; p++) sum += from[p * g.most * g.cols];
  float* at = g.to + k * g.rankStep + column * g.colStep;
  *at = g.add ? *at + sum : sum;
}

// B [width, r] as [r, width] in f32.
__global__ void __launch_bounds__(kThreads)
    turnKernel(const void* b, DType type, int64_t width, int64_t rank, float* to) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < width * rank) to[i] = oneAt(b, type, i % width * rank + i / width);
}

enum class Mode { none, write, add };

// One adapter of a call of the gradients.
struct Adapter {
  int64_t r = -1;
  const View *a = nullptr, *b = nullptr;
  float *dA = nullptr, *dB = nullptr;
  Mode modeA = Mode::none, modeB = Mode::none;
};

// The tensors of a call of the gradients, by what the modes say there is.
struct Gradients {
  size_t adapters = 0;
  int64_t batch = 0, in = 0, out = 0, most = 0;
  Mode modeX = Mode::none;
  std::vector<Adapter> all;
  const View *x = nullptr, *h = nullptr;
  const View* dx = nullptr;

  explicit Gradients(const CudaArgs& args) {
    args.atLeast(1, 2);
    adapters = static_cast<size_t>(args.integer(0, 0, 1 << 20));
    const View& grad = args[0];
    EXPECT(args, grad.rank >= 2, "dy [B, .., O]", grad.describe());
    EXPECT(args, isFloat(grad.dtype), "tensor 0 of f32, f16 or bf16", grad.describe());
    batch = grad.dims[0];
    out = grad.last();
    size_t wanted = 2 + 3 * adapters + static_cast<size_t>(batch);
    EXPECT(args, args.attrCount == wanted, std::to_string(wanted) + " attributes",
           std::to_string(args.attrCount));
    all.resize(adapters);
    modeX = mode(args, 1 + adapters);
    bool anyA = false, anyB = false;
    size_t count = 1 + (modeX != Mode::none ? 1 : 0);
    for (size_t g = 0; g < adapters; g++) {
      Adapter& p = all[g];
      p.modeA = mode(args, 2 + adapters + 2 * g);
      p.modeB = mode(args, 3 + adapters + 2 * g);
      anyA = anyA || p.modeA != Mode::none;
      anyB = anyB || p.modeB != Mode::none;
      count += (modeX != Mode::none) + needsHidden(p) + (p.modeA != Mode::none) +
               (p.modeB != Mode::none);
    }
    count += (anyA ? 1 : 0) + (anyB ? 1 : 0);
    args.counts(count, wanted);
    read(args, anyA, anyB);
  }

  bool needsHidden(const Adapter& p) const { return modeX != Mode::none || p.modeA != Mode::none; }
  size_t groupsAt() const { return 2 + 3 * adapters; }

 private:
  static Mode mode(const CudaArgs& args, size_t i) {
    return static_cast<Mode>(args.integer(i, 0, 2));
  }

  void read(const CudaArgs& args, bool anyA, bool anyB) {
    size_t at = 1;
    if (anyA) {
      x = &args[at++];
      checkBatch(args, args[0], *x, "dy [B, .., O] and x [B, .., I]");
      EXPECT(args, isFloat(x->dtype), "tensor 1 of f32, f16 or bf16", x->describe());
      in = x->last();
    }
    if (anyB) {
      h = &args.typed(at++, DType::f32);
      checkBatch(args, args[0], *h, "dy [B, .., O] and h [B, .., R]");
    }
    size_t outputs = at;
    for (const Adapter& p : all) outputs += (modeX != Mode::none) + needsHidden(p);
    if (modeX != Mode::none) {
      const View& v = args.activations(outputs++);
      checkBatch(args, args[0], v, "dy [B, .., O] and dx [B, .., I]");
      EXPECT(args, !anyA || v.last() == in, "dx of x's shape", v.describe());
      in = v.last();
      dx = &v;
    }
    for (Adapter& p : all) {
      if (modeX != Mode::none) {
        checkSide(args, at, p.r, in, true);
        p.a = &args[at++];
      }
      if (needsHidden(p)) {
        checkSide(args, at, p.r, out, false);
        p.b = &args[at++];
      }
    }
    for (Adapter& p : all) {
      if (p.modeA != Mode::none) p.dA = sideGrad(args, outputs++, p.r, in, true);
      if (p.modeB != Mode::none) p.dB = sideGrad(args, outputs++, p.r, out, false);
      p.r = std::max<int64_t>(p.r, 0);
      most = std::max(most, p.r);
      EXPECT(args, p.modeB == Mode::none || p.r <= h->last(), "ranks up to h's",
             std::to_string(p.r) + " beyond " + std::to_string(h ? h->last() : 0));
    }
  }
};

// The gradients of one side of the adapters: dA from x and dh, or dB from dy and h.
void runOuter(const CudaArgs& args, const Gradients& t, std::vector<Segment> segments,
              const View& wide, const float* side, int64_t sideWidth, bool ofA) {
  auto mode = [&](int64_t g) {
    const Adapter& p = t.all[static_cast<size_t>(g)];
    return ofA ? p.modeA : p.modeB;
  };
  auto dropped = [&](const Segment& s) { return s.slot < 0 || mode(s.slot) == Mode::none; };
  segments.erase(std::remove_if(segments.begin(), segments.end(), dropped), segments.end());
  std::stable_sort(segments.begin(), segments.end(),
                   [](const Segment& a, const Segment& b) { return a.slot < b.slot; });
  std::vector<int64_t> first(t.adapters, 0), count(t.adapters, 0), own(t.adapters, 0);
  for (const Segment& s : segments) own[static_cast<size_t>(s.slot)] += s.rows;
  int64_t slots = 0;
  for (size_t g = 0; g < t.adapters; g++) {
    first[g] = slots;
    slots += count[g] = (own[g] + kPart - 1) / kPart;
    own[g] = 0;
  }
  for (Segment& s : segments) {
    size_t g = static_cast<size_t>(s.slot);
    s.own = own[g];
    own[g] += s.rows;
    s.rank = t.all[g].r;
    s.slot = first[g];
  }
  Outer m = {};
  m.wide = wide.data;
  m.type = wide.dtype;
  m.cols = wide.last();
  m.vector = fours(wide, m.cols);
  m.side = side;
  m.sideWidth = sideWidth;
  m.most = t.most;
  Workspace held(
      args.device.memory,
      static_cast<uint64_t>(std::max<int64_t>(slots * t.most * m.cols, 1)) * sizeof(float));
  m.parts = held.as<float>();
  if (m.cols == 0 || t.most == 0) return;
  byLaunch(segments, m, [&](const Launch<Outer>& l, unsigned n, int64_t longest) {
    int64_t blocks = ((longest + kPart - 1) / kPart + 1) * ((m.cols + kOuterCols - 1) / kOuterCols);
    launch(args, outerKernel, dim3(blocksFor(blocks, 1), n), dim3(kOuterThreads), 0, l);
  });
  SettledLaunch l = {};
  unsigned filled = 0;
  auto settle = [&] {
    if (filled == 0) return;
    launch(args, settleKernel, dim3(blocksFor(t.most * m.cols, kThreads), filled), dim3(kThreads),
           0, l);
    filled = 0;
  };
  for (size_t g = 0; g < t.adapters; g++) {
    Mode how = mode(static_cast<int64_t>(g));
    if (how == Mode::none) continue;
    const Adapter& p = t.all[g];
    l.all[filled++] = {m.parts, ofA ? p.dA : p.dB, first[g],      count[g],        p.r, m.cols,
                       t.most,  ofA ? m.cols : 1,  ofA ? 1 : p.r, how == Mode::add};
    if (filled == kSegments) settle();
  }
  settle();
}

}  // namespace

// With dh = s_g dy B_g: dx = dh A_g, dA_g = dh' x and dB_g = dy' h over the adapter's own rows.
void addLowRankRowsGrad(const CudaArgs& args) {
  Gradients t(args);
  const View& dy = args[0];
  int64_t rows = dy.rows();
  std::vector<Segment> segments =
      segmentsOf(args, t.adapters, t.groupsAt(), t.batch, t.batch > 0 ? rows / t.batch : 0);
  bool anyA = t.x != nullptr, hidden = t.modeX != Mode::none || anyA;
  if (t.h) runOuter(args, t, segments, dy, t.h->as<float>(), t.h->last(), false);
  if (!hidden) return;

  uint64_t turnedFloats = 0;
  for (const Adapter& p : t.all) turnedFloats += p.b ? static_cast<uint64_t>(t.out * p.r) : 0;
  Workspace turned(args.device.memory, std::max<uint64_t>(turnedFloats, 1) * sizeof(float));
  Workspace dh(args.device.memory,
               static_cast<uint64_t>(std::max<int64_t>(rows * t.most, 1)) * sizeof(float));
  std::vector<const float*> sides(t.adapters);
  float* at = turned.as<float>();
  for (size_t g = 0; g < t.adapters; g++) {
    const Adapter& p = t.all[g];
    sides[g] = at;
    int64_t count = p.b ? t.out * p.r : 0;
    if (count > 0) {
      launch(args, turnKernel, dim3(blocksFor(count, kThreads)), dim3(kThreads), 0, p.b->data,
             p.b->dtype, t.out, p.r, at);
    }
    at += count;
  }
  Branch m = {};
  m.x = dy.data;
  m.xType = dy.dtype;
  m.vectorX = fours(dy, t.out);
  if (t.dx) m.z = AnyOut(*t.dx);
  m.base = t.modeX == Mode::add ? t.dx->data : nullptr;
  m.baseType = t.dx ? t.dx->dtype : DType::f32;
  m.h = anyA && t.most > 0 ? dh.as<float>() : nullptr;
  m.hWidth = t.most;
  m.deep = t.out;
  m.cols = t.in;
  std::vector<Segment> ready = segments;
  for (Segment& s : ready) {
    if (s.slot < 0) continue;
    size_t g = static_cast<size_t>(s.slot);
    const Adapter& p = t.all[g];
    if (!p.b) continue;
    bool vector = t.out % 4 == 0 && reinterpret_cast<uintptr_t>(sides[g]) % 16 == 0;
    s.down = {sides[g], DType::f32, t.out, 1, vector};
    if (p.a) s.up = sideOfA(*p.a);
    s.rank = p.r;
    s.scale = static_cast<float>(args.attrs[1 + g]);
  }
  runBranch(args, ready, m);
  if (anyA) runOuter(args, t, segments, *t.x, dh.as<float>(), t.most, true);
}

}  // namespace lowrank

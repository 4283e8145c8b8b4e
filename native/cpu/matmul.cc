// Matrix products: matmul with batches and transposes, and linear. Blocks of the output are tasks.
#include <algorithm>

#include "kernels.h"

namespace lowrank {

namespace {

struct Tiling {
  int64_t rows, cols;    // of one task
  int64_t down, across;  // tasks along M and N
};

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A task of mb x nb packs mb*K + nb*K elements for mb*nb*K products: near-square tasks pack least.
Tiling tile(const Context& c, int64_t m, int64_t n, int64_t k, int64_t batch) {
  const IsaTable& isa = *c.isa;
  double work = 2.0 * static_cast<double>(m) * static_cast<double>(n) *
                static_cast<double>(std::max<int64_t>(k, 1));
  bool deep = k > 512;  // long sums, as of weight gradients: every task reads much, so few tasks
  constexpr double kTask = 1.0e6;  // flops worth handing to another thread
  int64_t want = c.threads <= 1
                     ? 1
                     : static_cast<int64_t>(std::min(work / kTask, c.threads * (deep ? 2.0 : 4.0) /
                                                                       static_cast<double>(batch)));
  want = std::max<int64_t>(want, 1);
  // With many depth blocks the task's part of C is read and written often: it should stay in cache.
  if (deep) want = std::max(want, ceilDiv(m, 48 * isa.rowTile));
  int64_t mostDown = ceilDiv(m, isa.rowTile), mostAcross = ceilDiv(n, isa.colTile);
  Tiling best = {m, n, 1, 1};
  double bestCost = 1e300;
  for (int64_t across = std::min(mostAcross, ceilDiv(n, isa.colBlock)); across <= mostAcross;
       across++) {
    int64_t cols = ceilDiv(mostAcross, across) * isa.colTile;
    int64_t down = std::min(mostDown, ceilDiv(want, ceilDiv(n, cols)));
    int64_t rows = ceilDiv(mostDown, down) * isa.rowTile;
    double cost =
        1.0 / static_cast<double>(std::min(rows, m)) + 1.0 / static_cast<double>(std::min(cols, n));
    int64_t tasks = ceilDiv(m, rows) * ceilDiv(n, cols);
    if (tasks < want) cost += 1;  // leaves threads idle
    if (cost < bestCost) {
      bestCost = cost;
      best = {rows, cols, ceilDiv(m, rows), ceilDiv(n, cols)};
    }
  }
  return best;
}

struct Batched {
  int64_t m, n, batch;
  const int64_t *aOffsets, *bOffsets;  // elements, one for each batch; null for a single one
};

void product(Context& c, const GemmTask& task, const Batched& s) {
  if (s.m == 0 || s.n == 0 || s.batch == 0) return;
  Tiling t = tile(c, s.m, s.n, task.k, s.batch);
  const IsaTable& isa = *c.isa;
  Workspace held(c.memory, static_cast<uint64_t>(isa.scratch) * sizeof(float) *
                               static_cast<uint64_t>(c.threads));
  float* scratch = held.as<float>();
  size_t aSize = dtypeSize(static_cast<DType>(task.aType)),
         bSize = dtypeSize(static_cast<DType>(task.bType));
  int64_t perBatch = t.down * t.across;
  double work = 2.0 * static_cast<double>(s.m * s.n) * static_cast<double>(task.k);
  // Small matrices of a batch go several to a chunk.
  int64_t grain = std::max<int64_t>(
      1, static_cast<int64_t>(2.5e5 * static_cast<double>(perBatch) / std::max(work, 1.0)));
  c.ranges(s.batch * perBatch, grain, [&](int64_t from, int64_t to, int worker) {
    for (int64_t i = from; i < to; i++) {
      int64_t batch = i / perBatch, m0 = i % perBatch / t.across * t.rows,
              n0 = i % t.across * t.cols;
      GemmTask g = task;
      if (s.aOffsets) {
        g.a = static_cast<const char*>(task.a) + static_cast<size_t>(s.aOffsets[batch]) * aSize;
        g.b = static_cast<const char*>(task.b) + static_cast<size_t>(s.bOffsets[batch]) * bSize;
        g.c = task.c + batch * s.m * s.n;
      }
      isa.gemm(&g, m0, std::min(m0 + t.rows, s.m), n0, std::min(n0 + t.cols, s.n),
               scratch + worker * isa.scratch);
    }
  });
}

// y = 0 + bias, or untouched where it accumulates: what a product over no terms is.
bool emptyDepth(const GemmTask& g, int64_t rows, int64_t cols) {
  if (g.k > 0) return false;
  if (g.accumulate) return true;
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < cols; j++) g.c[i * cols + j] = g.bias ? g.bias[j] : 0.0f;
  }
  return true;
}

// Offsets of each batch of y in an input whose batch axes broadcast.
std::vector<int64_t> batchOffsets(const Args& args, size_t i) {
  const View &x = args[i], &y = args[2];
  int64_t strides[kMaxRank] = {}, step = x.dims[x.rank - 1] * x.dims[x.rank - 2];
  int axes = y.rank - 2, own = x.rank - 2;
  EXPECT(args, own <= axes,
         "tensor " + std::to_string(i) + " with at most the axes of " + y.describe(), x.describe());
  for (int d = axes - 1, s = own - 1; d >= 0; d--, s--) {
    int64_t size = s >= 0 ? x.dims[s] : 1;
    EXPECT(args, size == 1 || size == y.dims[d], "batch axes that broadcast to " + y.describe(),
           x.describe());
    strides[d] = size == 1 ? 0 : step;
    step *= size;
  }
  int64_t batch = y.product(0, axes);
  std::vector<int64_t> offsets(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; b++) {
    int64_t rest = b, at = 0;
    for (int d = axes - 1; d >= 0; d--) {
      at += rest % y.dims[d] * strides[d];
      rest /= y.dims[d];
    }
    offsets[static_cast<size_t>(b)] = at;
  }
  return offsets;
}

void matmul(const Args& args) {
  args.counts(3, 4);
  const View &a = args[0], &b = args[1], &y = args.out(2);
  bool ta = args.integer(0, 0, 1) != 0, tb = args.integer(1, 0, 1) != 0;
  EXPECT(args, isFloat(a.dtype) && isFloat(b.dtype), "factors of f32, f16 or bf16",
         a.describe() + " and " + b.describe());
  EXPECT(args, a.rank >= 2 && b.rank >= 2 && y.rank >= 2, "matrices",
         a.describe() + ", " + b.describe() + " and " + y.describe());
  int64_t m = a.dim(ta ? -1 : -2), k = a.dim(ta ? -2 : -1), n = b.dim(tb ? -2 : -1);
  EXPECT(args, b.dim(tb ? -1 : -2) == k,
         "[.., " + std::to_string(k) + "] to meet [" + std::to_string(k) + ", ..]",
         a.describe() + " and " + b.describe());
  EXPECT(args, y.dim(-2) == m && y.dim(-1) == n,
         "an output of [.., " + std::to_string(m) + ", " + std::to_string(n) + "]", y.describe());
  std::vector<int64_t> aOffsets = batchOffsets(args, 0), bOffsets = batchOffsets(args, 1);
  GemmTask g = {};
  g.k = k;
  g.a = a.data;
  g.aType = static_cast<int>(a.dtype);
  g.aRow = ta ? 1 : k;
  g.aCol = ta ? m : 1;
  g.b = b.data;
  g.bType = static_cast<int>(b.dtype);
  g.bRow = tb ? 1 : n;
  g.bCol = tb ? k : 1;
  g.c = y.as<float>();
  g.cRow = n;
  g.alpha = static_cast<float>(args.attrs[2]);
  g.accumulate = args.integer(3, 0, 1) != 0;
  int64_t batch = static_cast<int64_t>(aOffsets.size());
  if (emptyDepth(g, batch * m, n)) return;
  bool whole = a.rank == y.rank && a.product(0, a.rank - 2) == batch;
  if (batch > 1 && !ta && whole && b.product(0, b.rank - 2) == 1) {
    return product(args.context, g, {batch * m, n, 1, nullptr, nullptr});  // one tall product
  }
  product(args.context, g, {m, n, batch, aOffsets.data(), bOffsets.data()});
}

void linear(const Args& args) {
  EXPECT(args, args.count == 3 || args.count == 4, "3 or 4 tensors", std::to_string(args.count));
  args.counts(args.count, 0);
  bool biased = args.count == 4;
  const View &x = args[0], &w = args[1], &y = args.out(biased ? 3 : 2);
  EXPECT(args, isFloat(x.dtype) && isFloat(w.dtype), "input and weight of f32, f16 or bf16",
         x.describe() + " and " + w.describe());
  EXPECT(args, x.rank >= 1 && w.rank == 2 && y.rank == x.rank, "x [.., I], w [O, I] and y [.., O]",
         x.describe() + ", " + w.describe() + " and " + y.describe());
  int64_t k = x.last(), n = w.dims[0], m = x.rows();
  EXPECT(args, w.dims[1] == k, "a weight of [O, " + std::to_string(k) + "]", w.describe());
  EXPECT(args, y.last() == n && y.rows() == m, "an output of [.., " + std::to_string(n) + "]",
         y.describe());
  if (biased) args.shaped(2, {n});
  Floats bias = biased ? floats(args, 2) : Floats(nullptr);
  GemmTask g = {k,
                x.data,
                static_cast<int>(x.dtype),
                k,
                1,
                w.data,
                static_cast<int>(w.dtype),
                1,
                k,
                y.as<float>(),
                n,
                1.0f,
                false,
                bias};
  if (emptyDepth(g, m, n)) return;
  product(args.context, g, {m, n, 1, nullptr, nullptr});
}

}  // namespace

void registerMatmul(Registry& r) {
  r.push_back({"matmul", matmul});
  r.push_back({"linear", linear});
}

}  // namespace lowrank

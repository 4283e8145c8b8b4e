// Matrix products: matmul with batches and transposes, and linear. Blocks of the output are tasks.
#include "../common/calls/matmul.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <utility>

#include "kernels.h"

namespace lowrank {

// f(i, n): elements [i, i + n) of C, of one row, have their last term. They are in cache still.
struct Finish {
  std::function<void(int64_t, int64_t)> f;
};

namespace {

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kShared = int64_t{1} << 19;  // floats of a factor that all threads read, packed
constexpr int64_t kPackChunk = 32768;          // floats to pack that are worth handing over
constexpr double kTaskFlops = 1.0e6, kTaskBytes = 65536;  // and work
constexpr int64_t kFew = 16;            // rows for which B is all there is to read
constexpr int64_t kPartsPerThread = 6;  // so that a thread whose core is taken delays little

// Parts to cut a product into: one thread needs none.
int64_t partsFor(const Context& c, const GemmTask& t) {
  if (c.threads <= 1) return 1;
  double flops =
      2.0 * static_cast<double>(t.m) * static_cast<double>(t.n) * static_cast<double>(t.k);
  double bytes = 4.0 * static_cast<double>(t.k) * static_cast<double>(t.m + t.n) +
                 4.0 * static_cast<double>(t.m) * static_cast<double>(t.n);
  double worth = std::max(flops / kTaskFlops, bytes / kTaskBytes);
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(
                                  worth, 1.0 * static_cast<double>(kPartsPerThread * c.threads))));
}

// Width of a part of `total` lines in whole tiles, at least `least` and at most `most`.
int64_t partOf(int64_t total, int64_t parts, int64_t tile, int64_t least, int64_t most) {
  int64_t width = std::min(std::max(ceilDiv(total, parts), least), most);
  return ceilDiv(width, tile) * tile;
}

// Scratch of every thread for one product.
class Scratch {
 public:
  Scratch(Context& c, const GemmKernels& g)
      : size_(g.scratch), held_(c.memory, bytesOf(g.scratch * c.threads)) {}
  float* of(int worker) const { return held_.as<float>() + worker * size_; }
  static uint64_t bytesOf(int64_t floats) { return static_cast<uint64_t>(floats) * sizeof(float); }

 private:
  int64_t size_;
  Workspace held_;
};

// All rows of A (or columns of B) for the part [k0,k1) of K.
void packAll(Context& c, const GemmKernels& g, const GemmTask& t, bool rows, float* to) {
  int64_t step = g.depth(t.k), lines = rows ? t.m : t.n, tile = rows ? g.rowTile : g.colTile;
  int64_t padded = rows ? g.paddedRows(lines) : g.paddedCols(lines);
  int64_t group = partOf(lines, 1, tile, 0, ceilDiv(kPackChunk * g.pair, step));
  int64_t groups = ceilDiv(lines, group), blocks = ceilDiv(t.k1 - t.k0, step);
  c.ranges(groups * blocks, 1, [&](int64_t i, int64_t, int) {
    int64_t p0 = t.k0 + i / groups * step, elements = std::min(step, t.k1 - p0);
    int64_t from = i % groups * group, end = std::min(from + group, lines);
    int64_t steps = ceilDiv(elements, g.pair);
    (rows ? g.packRows : g.packCols)(&t, from, end, p0, elements,
                                     to + (p0 - t.k0) / g.pair * padded + from * steps);
  });
}

// f(task) for each part of K for which all of A (or of B) is packed once, for every thread.
template <class F>
void withPacked(Context& c, const GemmKernels& g, GemmTask t, bool rows, F f) {
  int64_t step = g.depth(t.k), padded = rows ? g.paddedRows(t.m) : g.paddedCols(t.n);
  int64_t blocks = std::max<int64_t>(1, kShared / (padded * ceilDiv(step, g.pair)));
  int64_t span = std::min(blocks * step, ceilDiv(t.k, step) * step);
  Workspace held(c.memory, Scratch::bytesOf(padded * ceilDiv(span, g.pair)));
  for (t.k0 = 0; t.k0 < t.k; t.k0 += span) {
    t.k1 = std::min(t.k0 + span, t.k);
    packAll(c, g, t, rows, held.as<float>());
    (rows ? t.aPack : t.bPack) = held.as<float>();
    f(t);
  }
}

// The parts of C with [m0,m1) and [n0,n1).
template <class F>
void blocks(Context& c, const GemmTask& t, int64_t rows, int64_t cols, F f) {
  int64_t down = ceilDiv(t.m, rows), across = ceilDiv(t.n, cols);
  c.ranges(down * across, 1, [&](int64_t i, int64_t, int worker) {
    int64_t m0 = i / across * rows, n0 = i % across * cols;
    f(m0, std::min(m0 + rows, t.m), n0, std::min(n0 + cols, t.n), worker);
  });
}

// f(i, next, worker) for i in [0, count): each thread takes a run of neighbours in order, so that
// it knows which comes next (the first one again at the end), then what is left of other runs.
template <class F>
void runs(Context& c, int64_t count, F f) {
  int64_t threads = std::max<int64_t>(1, std::min<int64_t>(c.threads, count));
  std::vector<std::atomic<int64_t>> taken(static_cast<size_t>(threads));
  c.ranges(threads, 1, [&](int64_t own, int64_t, int worker) {
    for (int64_t r = own; r < own + threads; r++) {
      int64_t run = r % threads, from = run * count / threads, end = (run + 1) * count / threads;
      for (;;) {
        int64_t i = from + taken[static_cast<size_t>(run)].fetch_add(1, std::memory_order_relaxed);
        if (i >= end) break;
        f(i, i + 1 < end ? i + 1 : from, worker);
      }
    }
  });
}

// `width` lines a part, or another number of whole tiles with which `threads` threads that take as
// many parts each are done clearly sooner.
int64_t evenly(int64_t total, int64_t threads, int64_t tile, int64_t least, int64_t most,
               int64_t width) {
  auto longest = [&](int64_t w) { return ceilDiv(ceilDiv(total, w), threads) * w; };
  int64_t best = width;
  for (int64_t w = least; w <= most; w += tile) {
    if (longest(w) * 103 < longest(best) * 100) best = w;
  }
  return best;
}

// To be called by who has added the terms of a task to a part of C.
void finish(const GemmTask& t, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  if (!t.finish || t.k1 < t.k) return;
  for (int64_t i = m0; i < m1; i++) t.finish->f(i * t.cRow + n0, n1 - n0);
}

// Cut along the longer side of C; the factor of the other side is packed once for all, and each
// part packs its own share of the other factor, so that nothing is packed twice.
void largeProduct(Context& c, const GemmKernels& g, const GemmTask& task) {
  int64_t parts = partsFor(c, task);
  bool byColumns = task.n >= task.m;
  int64_t most = byColumns ? g.colBlock : g.rowBlock;
  int64_t rows = task.m, cols = task.n;
  if (byColumns) {
    int64_t least = 2 * g.colTile;
    cols = partOf(task.n, parts, g.colTile, least, most);
    if (parts > 1) cols = evenly(task.n, c.threads, g.colTile, least, most, cols);
    rows = partOf(task.m, ceilDiv(parts, 2 * ceilDiv(task.n, cols)), g.rowTile, g.rowBlock, task.m);
  } else {
    int64_t least = 4 * g.rowTile;
    rows = partOf(task.m, parts, g.rowTile, least, most);
    if (parts > 1) rows = evenly(task.m, c.threads, g.rowTile, least, most, rows);
    cols = partOf(task.n, ceilDiv(parts, 2 * ceilDiv(task.m, rows)), g.colTile, g.colBlock, task.n);
  }
  int64_t down = ceilDiv(task.m, rows), across = ceilDiv(task.n, cols);
  Scratch scratch(c, g);
  withPacked(c, g, task, byColumns, [&](const GemmTask& t) {
    runs(c, down * across, [&](int64_t i, int64_t next, int worker) {
      GemmTask part = t;
      int64_t m0 = i / across * rows, n0 = i % across * cols;
      // After the last part of a run comes its first one at the next blocks of K.
      part.nextK = next > i ? t.k0 : t.k1;
      part.next0 = byColumns ? next % across * cols : next / across * rows;
      part.next1 = byColumns ? std::min(part.next0 + cols, t.n) : std::min(part.next0 + rows, t.m);
      int64_t m1 = std::min(m0 + rows, t.m), n1 = std::min(n0 + cols, t.n);
      g.gemm(&part, m0, m1, n0, n1, scratch.of(worker));
      finish(part, m0, m1, n0, n1);
    });
  });
}

// A few rows: B is what there is to read, once, by every thread its share of the columns.
void fewRows(Context& c, const GemmKernels& g, const GemmTask& task) {
  int64_t parts = partsFor(c, task);
  bool streamed = task.bCol == 1;
  bool here = streamed || (task.bRow == 1 && task.m <= g.turnedRows);  // B stays where it lies
  int64_t most = task.m <= kFew ? g.fewCols : g.fewCols / 4;  // so that the sums stay in cache
  int64_t cols = streamed ? partOf(task.n, parts, g.colTile, 4 * g.colTile, most)
                          : partOf(task.n, parts, g.colTile, g.colTile, task.n);
  int64_t whole = task.n / g.colTile * g.colTile;
  Scratch scratch(c, g);
  withPacked(c, g, task, true, [&](const GemmTask& t) {
    runs(c, ceilDiv(t.n, cols), [&](int64_t i, int64_t next, int worker) {
      GemmTask part = t;
      int64_t n0 = i * cols, n1 = std::min(n0 + cols, t.n), end = here ? std::min(n1, whole) : n0;
      part.next0 = next * cols;
      part.next1 = next > i ? std::min(part.next0 + cols, t.n) : part.next0;
      if (end > n0) g.few(&part, n0, end, scratch.of(worker));
      if (n1 > end) g.gemm(&part, 0, t.m, std::max(n0, end), n1, scratch.of(worker));
      finish(part, 0, t.m, n0, n1);
    });
  });
}

// A few columns and A stored by columns: Cᵀ = Bᵀ Aᵀ is a product of a few rows.
void fewColumns(Context& c, const GemmKernels& g, const GemmTask& task) {
  GemmTask t = task;
  t.m = task.n;
  t.n = task.m / g.colTile * g.colTile;
  std::swap(t.a, t.b);
  std::swap(t.aType, t.bType);
  t.aRow = task.bCol;
  t.aCol = task.bRow;
  t.bRow = task.aCol;
  t.bCol = task.aRow;
  t.cRow = task.cCol;
  t.cCol = task.cRow;
  if (t.n > 0) fewRows(c, g, t);
  if (t.n == task.m) return;
  Scratch scratch(c, g);
  g.gemm(&task, t.n, task.m, 0, task.n, scratch.of(0));
}

// Many rows of few columns, as x Aᵀ of a low rank: B is packed, A is read where it lies.
void narrowProduct(Context& c, const GemmKernels& g, const GemmTask& task) {
  int64_t rows = partOf(task.m, partsFor(c, task), 8, 16, task.m);
  withPacked(c, g, task, false, [&](const GemmTask& t) {
    blocks(c, t, rows, t.n, [&](int64_t m0, int64_t m1, int64_t, int64_t, int) {
      g.narrow(&t, m0, m1);
      finish(t, m0, m1, 0, t.n);
    });
  });
}

void single(Context& c, const GemmKernels& g, const GemmTask& t) {
  constexpr int64_t kSmall = 64 * 64 * 64;
  bool narrow = g.narrow && t.n <= g.narrowCols && t.aCol == 1 && t.aType == 0;
  if (t.m <= kFew || (t.m <= g.fewRows && t.bCol == 1)) {
    fewRows(c, g, t);
  } else if (t.m * t.n * t.k <= kSmall) {
    Scratch scratch(c, g);
    g.gemm(&t, 0, t.m, 0, t.n, scratch.of(0));
    finish(t, 0, t.m, 0, t.n);
  } else if (t.n <= g.fewRows && t.aRow == 1 && !t.bias && !t.finish) {
    fewColumns(c, g, t);
  } else if (narrow) {
    narrowProduct(c, g, t);
  } else {
    largeProduct(c, g, t);
  }
}

struct Batched {
  int64_t batch;
  const int64_t *aOffsets, *bOffsets;  // elements, one for each batch; null for a single one
};

// Large matrices one after the other, each on all threads; small ones several to a chunk.
void batched(Context& c, const GemmKernels& g, const GemmTask& task, const Batched& s) {
  size_t aSize = dtypeSize(static_cast<DType>(task.aType)),
         bSize = dtypeSize(static_cast<DType>(task.bType));
  auto at = [&](int64_t i) {
    GemmTask t = task;
    t.a = static_cast<const char*>(task.a) + static_cast<size_t>(s.aOffsets[i]) * aSize;
    t.b = static_cast<const char*>(task.b) + static_cast<size_t>(s.bOffsets[i]) * bSize;
    t.c = task.c + i * task.m * task.n;
    return t;
  };
  double flops =
      2.0 * static_cast<double>(task.m) * static_cast<double>(task.n) * static_cast<double>(task.k);
  if (flops > 64 * kTaskFlops) {
    for (int64_t i = 0; i < s.batch; i++) single(c, g, at(i));
    return;
  }
  Scratch scratch(c, g);
  int64_t grain = std::max<int64_t>(1, static_cast<int64_t>(2.5e5 / std::max(flops, 1.0)));
  c.ranges(s.batch, grain, [&](int64_t from, int64_t to, int worker) {
    for (int64_t i = from; i < to; i++) {
      GemmTask t = at(i);
      g.gemm(&t, 0, t.m, 0, t.n, scratch.of(worker));
    }
  });
}

// A factor of f32 rounded to bf16, in scratch memory.
Workspace rounded(Context& c, const void* data, int64_t count) {
  Workspace held(c.memory, static_cast<uint64_t>(count) * sizeof(uint16_t));
  const float* from = static_cast<const float*>(data);
  uint16_t* to = held.as<uint16_t>();
  c.ranges(count, Context::kGrain,
           [&](int64_t b, int64_t e, int) { c.isa->narrowBf16(from + b, to + b, e - b); });
  return held;
}

// aCount and bCount are all elements of the factors.
void product(Context& c, GemmTask t, int64_t aCount, int64_t bCount, const Batched& s) {
  if (t.m == 0 || t.n == 0 || s.batch == 0) return;
  auto run = [&](const GemmKernels& g) {
    if (s.aOffsets) {
      batched(c, g, t, s);
    } else {
      single(c, g, t);
    }
  };
  constexpr int kFloat = static_cast<int>(DType::f32), kBrain = static_cast<int>(DType::bf16);
  auto fits = [&](int type) { return type == kFloat || type == kBrain; };
  bool brain =
      c.brain && (t.aType == kBrain || t.bType == kBrain) && fits(t.aType) && fits(t.bType);
  if (!brain) return run(c.isa->product);
  if (c.isa->brainProduct) return run(*c.isa->brainProduct);
  bool isA = t.aType == kFloat;
  if (!isA && t.bType != kFloat) return run(c.isa->product);
  Workspace held = rounded(c, isA ? t.a : t.b, isA ? aCount : bCount);
  (isA ? t.a : t.b) = held.as<uint16_t>();
  (isA ? t.aType : t.bType) = kBrain;
  run(c.isa->product);
}

// Rounds what is complete of y, which is computed at `from`, while it is close; f is empty where y
// is of f32.
Finish rounding(const Args& args, const View& y, const float* from) {
  if (y.dtype == DType::f32) return {};
  const IsaTable* isa = args.context.isa;
  uint16_t* to = y.as<uint16_t>();
  return {[=](int64_t i, int64_t n) { isa->narrowBf16(from + i, to + i, n); }};
}

// y = 0 + bias, or untouched where it accumulates: what a product over no terms is.
bool emptyDepth(const GemmTask& g, int64_t rows, int64_t cols) {
  if (g.k > 0) return false;
  if (g.accumulate) return true;
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < cols; j++) g.c[i * cols + j] = g.bias ? g.bias[j] : 0.0f;
  }
  finish(g, 0, rows, 0, cols);
  return true;
}

// Offsets of each batch of y in an input of these steps.
std::vector<int64_t> batchOffsets(const MatmulCall& p, const View& y, const int64_t* steps) {
  std::vector<int64_t> offsets(static_cast<size_t>(p.batches));
  for (int64_t b = 0; b < p.batches; b++) {
    int64_t rest = b, at = 0;
    for (int d = p.batchAxes - 1; d >= 0; d--) {
      at += rest % y.dims[d] * steps[d];
      rest /= y.dims[d];
    }
    offsets[static_cast<size_t>(b)] = at;
  }
  return offsets;
}

void matmul(const Args& args) {
  MatmulCall p = matmulCall(args);
  const View &a = args[0], &b = args[1], &y = args[2];
  GemmTask g = gemmTask(
      p.m, p.n, p.k, {a.data, static_cast<int>(a.dtype), p.transA ? 1 : p.k, p.transA ? p.m : 1},
      {b.data, static_cast<int>(b.dtype), p.transB ? 1 : p.n, p.transB ? p.k : 1}, nullptr, p.n);
  Activations result(args, y, p.accumulate);
  g.c = result;
  g.alpha = p.alpha;
  g.accumulate = p.accumulate;
  if (emptyDepth(g, p.batches * p.m, p.n)) return result.settle();
  if (p.tall || p.batches == 1) {
    Finish last = rounding(args, y, result);
    if (last.f) g.finish = &last;
    g.m *= p.batches;
    return product(args.context, g, a.count, b.count, {1, nullptr, nullptr});
  }
  std::vector<int64_t> aOffsets = batchOffsets(p, y, p.aSteps),
                       bOffsets = batchOffsets(p, y, p.bSteps);
  product(args.context, g, a.count, b.count, {p.batches, aOffsets.data(), bOffsets.data()});
  result.settle();
}

// c = x wᵀ (+ bias), and then `last`.
void layer(const Args& args, const LinearCall& p, const View& w, const float* bias, float* c,
           const Finish& last) {
  const View& x = args[0];
  GemmTask g =
      gemmTask(p.m, p.n, p.k, {x.data, static_cast<int>(x.dtype), p.k, 1},
               {w.data, static_cast<int>(w.dtype), p.turned ? p.n : 1, p.turned ? 1 : p.k}, c, p.n);
  g.bias = bias;
  if (last.f) g.finish = &last;
  if (emptyDepth(g, p.m, p.n)) return;
  product(args.context, g, x.count, w.count, {1, nullptr, nullptr});
}

Floats biasOf(const Args& args, const LinearCall& p, size_t i) {
  return p.biased ? floats(args, i) : Floats(nullptr);
}

void linear(const Args& args) {
  LinearCall p = linearCall(args);
  Floats bias = biasOf(args, p, 2);
  Activations result(args, p.y);
  layer(args, p, args[1], bias, result, rounding(args, p.y, result));
}

// What an activation is taken of, as f32 and rounded as its result is: a tensor that keeps it, or
// scratch memory, or `spare`.
class Inner {
 public:
  // `place` of the tensor, 0 where it is not kept.
  Inner(const Args& args, const View& y, size_t place, float* spare)
      : isa_(args.context.isa),
        brain_(y.dtype == DType::bf16),
        bits_(brain_ && place ? args[place].as<uint16_t>() : nullptr),
        held_(args.context.memory, brain_ || !(place || spare) ? Scratch::bytesOf(y.count) : 0) {
    data_ = brain_ || !(place || spare) ? held_.as<float>()
            : place                     ? args[place].as<float>()
                                        : spare;
  }
  float* data() const { return data_; }
  // Elements [i, i + n), at most kBlock of them.
  const float* rounded(int64_t i, int64_t n) const {
    uint16_t own[kBlock];
    uint16_t* to = bits_ ? bits_ + i : own;
    if (brain_) {
      isa_->narrowBf16(data_ + i, to, n);
      isa_->widenBf16(to, data_ + i, n);
    }
    return data_ + i;
  }
  static constexpr int64_t kBlock = 512;

 private:
  const IsaTable* isa_;
  bool brain_;
  uint16_t* bits_;
  Workspace held_;
  float* data_;
};

// f(i, n, to) writes elements [i, i + n) of y, of f32 or bf16, as f32.
template <class F>
Finish into(const Args& args, const View& y, F f) {
  const IsaTable* isa = args.context.isa;
  if (y.dtype == DType::f32) {
    float* to = y.as<float>();
    return {[=](int64_t i, int64_t n) { f(i, n, to + i); }};
  }
  uint16_t* to = y.as<uint16_t>();
  return {[=](int64_t from, int64_t n) {
    for (int64_t i = from; i < from + n; i += Inner::kBlock) {
      int64_t some = std::min(Inner::kBlock, from + n - i);
      float block[Inner::kBlock];
      f(i, some, block);
      isa->narrowBf16(block, to + i, some);
    }
  }};
}

void activatedLinear(const Args& args) {
  ActivatedCall p = activatedCall(args);
  constexpr Unary kOf[kActivationCount] = {kRelu, kSilu, kGeluErf, kGeluTanh};
  auto f = args.context.isa->unary[kOf[p.activation]];
  const View& y = p.linear.y;
  Inner inner(args, y, p.inner, y.dtype == DType::f32 ? y.as<float>() : nullptr);
  Finish last =
      into(args, y, [&](int64_t i, int64_t n, float* to) { f(inner.rounded(i, n), to, n); });
  Floats bias = biasOf(args, p.linear, 2);
  layer(args, p.linear, args[1], bias, inner.data(), last);
}

// The gate as a whole, then up, whose parts are finished with the gate's.
void gatedLinear(const Args& args) {
  GatedCall p = gatedCall(args);
  const View& y = p.up.y;
  Inner gate(args, y, p.inner, nullptr);
  Inner up(args, y, p.inner ? p.inner + 1 : 0, y.dtype == DType::f32 ? y.as<float>() : nullptr);
  auto f = args.context.isa->swiglu;
  Finish last = into(args, y, [&](int64_t i, int64_t n, float* to) {
    f(gate.rounded(i, n), up.rounded(i, n), to, n);
  });
  Floats gateBias = biasOf(args, p.gate, 3), upBias = biasOf(args, p.up, 4);
  layer(args, p.gate, args[1], gateBias, gate.data(), {});
  layer(args, p.up, args[2], upBias, up.data(), last);
}

}  // namespace

void registerMatmul(Registry& r) {
  r.push_back({"matmul", matmul});
  r.push_back({"linear", linear});
  r.push_back({"activatedLinear", activatedLinear});
  r.push_back({"gatedLinear", gatedLinear});
}

}  // namespace lowrank

// LoRA's branch on a batch of which each row names its adapter, and its gradients, for all adapters
// in one call. The rows of an adapter are taken together wherever they stand. Three products of
// rank r do it all: x A^T and dy B, whose sums are cut by their length alone; h B^T and dh A; and
// dh^T x and dy^T h, whose sums are cut by the adapter's own rows alone.
#include <algorithm>
#include <cstring>
#include <memory>

#include "../common/calls/low_rank.h"
#include "kernels.h"

namespace lowrank {

namespace {

constexpr int64_t kDeep = 1024;  // elements of a row that are summed at once
constexpr int64_t kWide = 512;   // columns of a tile: with the rank it stays in the caches
// Floats between the rows of a tile: not all in one set of a cache, no more pages than needed.
constexpr int64_t kDeepStep = kDeep + 16, kWideStep = kWide + 16;
constexpr int64_t kTall = 128;  // most rows of a part
constexpr int64_t kLeast = 32;  // rows that are worth turning a tile for
constexpr int64_t kFold = 32;   // rows that a gradient of A or B sums before it adds them
constexpr int64_t kLines = 64;  // columns that parts are cut in multiples of
constexpr double kPartFlops = 1.0e6, kPartBytes = 65536;  // that are worth a thread
constexpr int64_t kPartsPerThread = 6;

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// to = s * part, or to += s * part
void fold(float* to, const float* part, int64_t n, float s, bool first) {
  if (first) {
    for (int64_t i = 0; i < n; i++) to[i] = s * part[i];
  } else {
    for (int64_t i = 0; i < n; i++) to[i] += s * part[i];
  }
}

enum class Mode { none, write, add };

// One adapter: what is there of A [r, in] and B [out, r], and where their gradients go.
struct Pair {
  int64_t r = 0;
  float scale = 0;
  const float *a = nullptr, *b = nullptr;
  float *dA = nullptr, *dB = nullptr;
  Mode modeA = Mode::none, modeB = Mode::none;
};

// The rows of a batch by adapter: those of adapter g are order[start[g]] and so on, rising.
struct Rows {
  std::vector<int64_t> order, start, idle;  // idle: of no adapter

  Rows(const Args& args, size_t adapters, size_t firstAttr, int64_t batch, int64_t each) {
    std::vector<int64_t> groups(static_cast<size_t>(batch));
    start.assign(adapters + 1, 0);
    for (size_t b = 0; b < groups.size(); b++) {
      groups[b] = args.integer(firstAttr + b, -1, static_cast<int64_t>(adapters) - 1);
      if (groups[b] >= 0) start[static_cast<size_t>(groups[b]) + 1] += each;
    }
    for (size_t g = 0; g < adapters; g++) start[g + 1] += start[g];
    order.resize(static_cast<size_t>(start[adapters]));
    std::vector<int64_t> at(start.begin(), start.end());
    for (int64_t b = 0; b < batch; b++) {
      int64_t g = groups[static_cast<size_t>(b)];
      for (int64_t i = b * each; i < (b + 1) * each; i++) {
        if (g < 0) {
          idle.push_back(i);
        } else {
          order[static_cast<size_t>(at[static_cast<size_t>(g)]++)] = i;
        }
      }
    }
  }
  int64_t count() const { return static_cast<int64_t>(order.size()); }
  size_t groups() const { return start.size() - 1; }
};

// What a part of a call does: rows are places in Rows::order, or in `idle`.
struct Part {
  enum Kind { down, up, idle, outer } kind;
  size_t group;
  int64_t row0, row1, col0, col1;  // of down: tiles instead of columns
};

// A tensor's rows, those of every adapter together.
template <class T>
std::vector<T*> pointers(T* data, const Rows& rows, int64_t width) {
  std::vector<T*> p(rows.order.size());
  if (!data) return p;
  for (size_t i = 0; i < p.size(); i++) p[i] = data + rows.order[i] * width;
  return p;
}

// Numbers of rank r for each row: what x A^T or dy B gives. Those of one adapter lie close
// together; where several threads share a row's sum, its tiles lie apart until they are read.
struct Narrow {
  float* data = nullptr;
  int64_t splits = 1, size = 0;  // of data: splits times size
};

class Branches {
 public:
  Branches(const Args& args, Rows& rows, std::vector<Pair>& pairs, int64_t most)
      : args_(args), rows_(rows), pairs_(pairs), most_(std::max<int64_t>(most, 1)) {
    own_ = most_ * (kDeepStep + kTall);
    held_.emplace_back(args.context.memory, bytesOf(own_ * args.context.threads));
    scratch_ = held_.back().as<float>();
  }

  // Parts that a job of so much work is worth.
  int64_t partsFor(double flops, double bytes) const {
    int threads = args_.context.threads;
    if (threads <= 1) return 1;
    double worth = std::max(flops / kPartFlops, bytes / kPartBytes);
    return std::max<int64_t>(
        1, static_cast<int64_t>(std::min(worth, static_cast<double>(kPartsPerThread * threads))));
  }

  // Cuts p = s x F^T [rows, r] of rows of `deep` elements into parts, for adapters whose F is
  // there.
  void cutDown(std::vector<Part>& parts, int64_t wanted, int64_t deep, bool isA, Narrow& p) {
    int64_t tiles = ceilDiv(deep, kDeep), blocks = 0;
    for (size_t g = 0; g < rows_.groups(); g++) blocks += ceilDiv(size(g), tall(g, wanted));
    int64_t across = std::min(tiles, blocks > 0 ? ceilDiv(wanted, blocks) : 1);
    p.splits = across > 1 ? tiles : 1;
    p.size = rows_.count() * most_;
    held_.emplace_back(args_.context.memory, bytesOf(p.size * p.splits));
    p.data = held_.back().as<float>();
    int64_t run = ceilDiv(tiles, across);
    for (size_t g = 0; g < rows_.groups(); g++) {
      if (!(isA ? pairs_[g].a : pairs_[g].b)) continue;
      int64_t step = tall(g, wanted), end = rows_.start[g + 1];
      for (int64_t i = rows_.start[g]; i < end; i += step) {
        for (int64_t t = 0; t < tiles; t += run) {
          parts.push_back({Part::down, g, i, std::min(i + step, end), t, std::min(t + run, tiles)});
        }
      }
    }
  }

  // Cuts z += p F [rows, cols] into parts, with those of no adapter where those are to be written.
  void cutUp(std::vector<Part>& parts, int64_t wanted, int64_t cols, bool fresh) {
    for (size_t g = 0; g < rows_.groups(); g++) {
      int64_t blocks = ceilDiv(size(g), kTall), end = rows_.start[g + 1];
      if (blocks == 0) continue;
      int64_t step = ceilDiv(size(g), blocks),
              width = widthOf(cols, ceilDiv(share(g, wanted), blocks));
      for (int64_t i = rows_.start[g]; i < end; i += step) {
        for (int64_t n = 0; n < cols; n += width) {
          parts.push_back({Part::up, g, i, std::min(i + step, end), n, std::min(n + width, cols)});
        }
      }
    }
    int64_t left = fresh ? static_cast<int64_t>(rows_.idle.size()) : 0;
    for (int64_t i = 0; i < left; i += kTall) {
      parts.push_back({Part::idle, 0, i, std::min(i + kTall, left), 0, cols});
    }
  }

  // Cuts the gradients of one side of each adapter, of `cols` elements for each rank, into parts.
  void cutOuter(std::vector<Part>& parts, int64_t wanted, int64_t cols, bool ofA) {
    for (size_t g = 0; g < rows_.groups(); g++) {
      if ((ofA ? pairs_[g].modeA : pairs_[g].modeB) == Mode::none) continue;
      int64_t width = widthOf(cols, share(g, wanted));
      for (int64_t n = 0; n < cols; n += width) {
        parts.push_back(
            {Part::outer, g, rows_.start[g], rows_.start[g + 1], n, std::min(n + width, cols)});
      }
    }
  }

  template <class F>
  void run(const std::vector<Part>& parts, int64_t wanted, F&& f) {
    int64_t n = static_cast<int64_t>(parts.size());
    args_.context.ranges(n, std::max<int64_t>(1, n / wanted),
                         [&](int64_t from, int64_t to, int worker) {
                           for (int64_t i = from; i < to; i++) {
                             f(parts[static_cast<size_t>(i)], scratch_ + worker * own_);
                           }
                         });
  }

  // p = s x F^T; F is A, or B turned.
  void down(const Part& part, const float* const* x, int64_t deep, bool isA, const Narrow& p,
            float* scratch) const {
    const Pair& pair = pairs_[part.group];
    int64_t r = pair.r, rows = part.row1 - part.row0;
    float *turned = scratch, *raw = scratch + most_ * kDeepStep;
    for (int64_t t = part.col0; t < part.col1; t++) {
      int64_t at = t * kDeep, n = std::min(kDeep, deep - at);
      const float* f = pair.a + at;
      int64_t step = deep;
      if (!isA) {
        isa().turn(pair.b + at * r, n, r, turned, kDeepStep);
        f = turned;
        step = kDeepStep;
      }
      bool split = p.splits > 1;
      float* to = place(p, part.group, part.row0);
      isa().rankDown(x + part.row0, at, rows, f, step, r, n, split ? to + t * p.size : raw);
      if (!split) fold(to, raw, rows * r, pair.scale, t == 0);
    }
  }

  // The numbers of rows [from, to) of an adapter, close together; in `block` where they are not.
  const float* read(const Narrow& p, size_t group, int64_t from, int64_t to, float* block) const {
    const float* first = place(p, group, from);
    if (p.splits == 1) return first;
    int64_t n = (to - from) * pairs_[group].r;
    for (int64_t t = 0; t < p.splits; t++) {
      fold(block, first + t * p.size, n, pairs_[group].scale, t == 0);
    }
    return block;
  }

  // z += p F; F is A, or B turned. Rows begin as those of `base`, or as zeros, where they are
  // fresh.
  void up(const Part& part, const Narrow& p, bool isA, float* const* z, int64_t cols, bool fresh,
          const float* const* base, float* scratch) const {
    const Pair& pair = pairs_[part.group];
    int64_t r = pair.r, rows = part.row1 - part.row0;
    float *tile = scratch, *block = scratch + most_ * kDeepStep;
    const float* side = read(p, part.group, part.row0, part.row1, block);
    for (int64_t n0 = part.col0; n0 < part.col1; n0 += kWide) {
      int64_t n = std::min(kWide, part.col1 - n0);
      for (int64_t i = part.row0; fresh && i < part.row1; i++) {
        begin(z[i] + n0, base ? base[i] + n0 : nullptr, n);
      }
      const float* f = pair.a + n0;
      int64_t step = cols;
      if (!isA) {
        isa().turn(pair.b + n0 * r, n, r, tile, kWideStep);
      } else if (rows > kFold) {
        for (int64_t k = 0; k < r; k++) begin(tile + k * kWideStep, f + k * cols, n);
      }
      if (!isA || rows > kFold) {
        f = tile;
        step = kWideStep;
      }
      isa().rankUp(z + part.row0, n0, rows, n, side, r, f, step);
    }
  }

  // A row of no adapter: as in `base`, or zeros.
  void idle(const Part& part, float* z, const float* base, int64_t cols) const {
    for (int64_t i = part.row0; i < part.row1; i++) {
      int64_t at = rows_.idle[static_cast<size_t>(i)] * cols;
      begin(z + at, base ? base + at : nullptr, cols);
    }
  }

  // g (+)= p^T x, g [r, cols] of dA, or dB turned. sideOf(from, to, block) gives rows of p.
  template <class F>
  void outer(const Part& part, const float* const* x, int64_t cols, bool ofA, float* scratch,
             F&& sideOf) const {
    const Pair& pair = pairs_[part.group];
    int64_t r = pair.r;
    bool more = (ofA ? pair.modeA : pair.modeB) == Mode::add;
    float *tile = scratch, *block = scratch + most_ * kDeepStep;
    for (int64_t n0 = part.col0; n0 < part.col1; n0 += kWide) {
      int64_t n = std::min(kWide, part.col1 - n0);
      bool direct = ofA && part.row1 - part.row0 <= kFold;
      float* g = direct ? pair.dA + n0 : tile;
      int64_t step = direct ? cols : kWideStep;
      bool add = direct && more;
      if (part.row0 == part.row1 && !add) {
        for (int64_t k = 0; k < r; k++) begin(g + k * step, nullptr, n);
      }
      for (int64_t i = part.row0; i < part.row1; i += kFold) {
        int64_t end = std::min(i + kFold, part.row1);
        const float* side = sideOf(i, end, block);
        bool ahead = end + end - i <= part.row1;
        isa().rankOuter(x + i, n0, end - i, side, r, n, g, step, add || i > part.row0, ahead);
      }
      if (!ofA) isa().turnBack(tile, kWideStep, n, r, pair.dB + n0 * r, more);
      if (ofA && !direct) settle(tile, pair.dA + n0, r, n, cols, more);
    }
  }

  int64_t size(size_t g) const { return rows_.start[g + 1] - rows_.start[g]; }

 private:
  static uint64_t bytesOf(int64_t floats) {
    return static_cast<uint64_t>(std::max<int64_t>(floats, 1)) * sizeof(float);
  }
  const IsaTable& isa() const { return *args_.context.isa; }

  static void begin(float* to, const float* from, int64_t n) {
    if (!from) {
      std::fill_n(to, n, 0.0f);
    } else if (from != to) {
      std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
    }
  }

  // dA's columns of a tile.
  void settle(const float* tile, float* dA, int64_t r, int64_t n, int64_t cols, bool more) const {
    for (int64_t k = 0; k < r; k++) {
      float* to = dA + k * cols;
      if (more) {
        isa().binary[kAdd](to, 1, tile + k * kWideStep, 1, to, n);
      } else {
        begin(to, tile + k * kWideStep, n);
      }
    }
  }

  float* place(const Narrow& p, size_t g, int64_t row) const {
    return p.data + rows_.start[g] * most_ + (row - rows_.start[g]) * pairs_[g].r;
  }

  // An adapter's part of the parts.
  int64_t share(size_t g, int64_t wanted) const {
    return ceilDiv(wanted * size(g), std::max<int64_t>(rows_.count(), 1));
  }
  // Rows of a part of x F^T.
  int64_t tall(size_t g, int64_t wanted) const {
    int64_t rows = ceilDiv(size(g), std::max<int64_t>(share(g, wanted), 1));
    return std::min(std::max(ceilDiv(rows, 4) * 4, kLeast), kTall);
  }
  static int64_t widthOf(int64_t cols, int64_t pieces) {
    return ceilDiv(ceilDiv(cols, std::max<int64_t>(pieces, 1)), kLines) * kLines;
  }

  const Args& args_;
  const Rows& rows_;
  const std::vector<Pair>& pairs_;
  int64_t most_, own_;
  std::vector<Workspace> held_;
  float* scratch_;
};

// Bytes of factors and of rows, and multiply-adds, of a product of rank r for each adapter.
struct Work {
  double flops = 0, bytes = 0;
  void product(const std::vector<Pair>& pairs, const Branches& b, int64_t width) {
    for (size_t g = 0; g < pairs.size(); g++) {
      double r = static_cast<double>(pairs[g].r), rows = static_cast<double>(b.size(g));
      double w = static_cast<double>(width);
      flops += 2 * r * rows * w;
      bytes += 4 * w * (r + rows);
    }
  }
};

// Checks an A [r, in] or B [out, r] and gives it as f32.
const float* sideOf(const Args& args, size_t i, int64_t& r, int64_t width, bool isA,
                    std::vector<Floats>& held) {
  checkSide(args, i, r, width, isA);
  held.push_back(floats(args, i));
  return held.back();
}

// Rows of h [N, R] of each adapter's numbers; zeros behind those of a lower rank and in idle rows.
void keep(const Branches& b, const Narrow& p, const Rows& rows, const std::vector<Pair>& pairs,
          float* h, int64_t width) {
  for (int64_t row : rows.idle) std::fill_n(h + row * width, width, 0.0f);
  std::vector<float> block(static_cast<size_t>(width));
  for (size_t g = 0; g < pairs.size(); g++) {
    int64_t r = pairs[g].r;
    for (int64_t i = rows.start[g]; i < rows.start[g + 1]; i++) {
      float* to = h + rows.order[static_cast<size_t>(i)] * width;
      if (r > 0) {
        std::memcpy(to, b.read(p, g, i, i + 1, block.data()),
                    static_cast<size_t>(r) * sizeof(float));
      }
      std::fill_n(to + r, width - r, 0.0f);
    }
  }
}

// z = y + h B_g^T with h = s_g x A_g^T for the adapter g of each row of the batch; z = y without
// one. h is an output where it is asked for.
void addLowRankRows(const Args& args) {
  EXPECT(args, args.count >= 3, "y, x, pairs of A and B, z and maybe h",
         std::to_string(args.count) + " tensors");
  size_t adapters = (args.count - 3) / 2, last = 2 + 2 * adapters;
  bool kept = args.count == last + 2;
  const View &y = args[0], &x = args[1], &z = args.activations(last);
  checkBatch(args, x, y, "x [B, .., I] and y [B, .., O]");
  args.sameShape(0, last);
  int64_t batch = x.dims[0], in = x.last(), out = y.last(), most = 0;
  EXPECT(args, args.attrCount == adapters + static_cast<size_t>(batch),
         "a scale for each adapter and an adapter for each row",
         std::to_string(args.attrCount) + " attributes");
  Rows rows(args, adapters, adapters, batch, batch > 0 ? x.rows() / batch : 0);
  std::vector<Floats> held;
  std::vector<Pair> pairs(adapters);
  for (size_t g = 0; g < adapters; g++) {
    int64_t r = -1;
    pairs[g].a = sideOf(args, 2 + 2 * g, r, in, true, held);
    pairs[g].b = sideOf(args, 3 + 2 * g, r, out, false, held);
    pairs[g].r = r;
    pairs[g].scale = static_cast<float>(args.attrs[g]);
    most = std::max(most, r);
  }
  if (kept) {
    const View& h = args.out(last + 1);
    checkBatch(args, x, h, "x [B, .., I] and h [B, .., R]");
    EXPECT(args, h.last() == most, "h of the largest rank, " + std::to_string(most), h.describe());
  }
  Floats from = floats(args, 0), input = floats(args, 1);
  const float* base = from;
  Activations result(args, z);
  float *sum = result, *h = kept ? args[last + 1].as<float>() : nullptr;

  Branches b(args, rows, pairs, most);
  Narrow p;
  Work work;
  work.product(pairs, b, in);
  int64_t wanted = b.partsFor(work.flops, work.bytes);
  std::vector<Part> parts;
  b.cutDown(parts, wanted, std::max<int64_t>(in, 1), true, p);
  if (in == 0) {
    std::fill_n(p.data, p.size * p.splits, 0.0f);
  } else {
    std::vector<const float*> xRows = pointers<const float>(input, rows, in);
    b.run(parts, wanted, [&](const Part& part, float* scratch) {
      b.down(part, xRows.data(), in, true, p, scratch);
    });
  }
  if (h) keep(b, p, rows, pairs, h, most);

  bool fresh = base != sum;
  std::vector<float*> zRows = pointers(sum, rows, out);
  std::vector<const float*> yRows = pointers<const float>(base, rows, out);
  work = Work();
  work.product(pairs, b, out);
  if (fresh) work.bytes += 8.0 * static_cast<double>(z.count);
  wanted = b.partsFor(work.flops, work.bytes);
  parts.clear();
  b.cutUp(parts, wanted, out, fresh);
  b.run(parts, wanted, [&](const Part& part, float* scratch) {
    if (part.kind == Part::idle) return b.idle(part, sum, base, out);
    b.up(part, p, false, zRows.data(), out, fresh, yRows.data(), scratch);
  });
  result.settle();
}

// The tensors of a call of the gradients, by what the modes say there is.
struct Gradients {
  size_t adapters = 0;
  int64_t batch = 0, in = 0, out = 0, most = 0;
  Mode modeX = Mode::none;
  std::vector<Pair> pairs;
  std::vector<Floats> held;
  const float *dy = nullptr, *x = nullptr, *h = nullptr;
  int64_t hWidth = 0;
  std::unique_ptr<Activations> made;  // of dx
  float* dx = nullptr;

  explicit Gradients(const Args& args) {
    args.atLeast(1, 2);
    adapters = static_cast<size_t>(args.integer(0, 0, 1 << 20));
    const View& grad = args[0];
    EXPECT(args, grad.rank >= 2, "dy [B, .., O]", grad.describe());
    batch = grad.dims[0];
    out = grad.last();
    size_t wanted = 2 + 3 * adapters + static_cast<size_t>(batch);
    EXPECT(args, args.attrCount == wanted, std::to_string(wanted) + " attributes",
           std::to_string(args.attrCount));
    pairs.resize(adapters);
    modeX = mode(args, 1 + adapters);
    bool anyA = false, anyB = false;
    size_t count = 1 + (modeX != Mode::none ? 1 : 0);
    for (size_t g = 0; g < adapters; g++) {
      Pair& p = pairs[g];
      p.scale = static_cast<float>(args.attrs[1 + g]);
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

  bool needsHidden(const Pair& p) const { return modeX != Mode::none || p.modeA != Mode::none; }
  size_t groupsAt() const { return 2 + 3 * adapters; }

 private:
  static Mode mode(const Args& args, size_t i) { return static_cast<Mode>(args.integer(i, 0, 2)); }

  const float* hold(const Args& args, size_t i) {
    held.push_back(floats(args, i));
    return held.back();
  }

  void read(const Args& args, bool anyA, bool anyB) {
    size_t at = 0, adapter = 0;
    dy = hold(args, at++);
    size_t xAt = at, hAt = at + (anyA ? 1 : 0);
    at = hAt + (anyB ? 1 : 0);
    in = anyA ? args[xAt].last() : 0;
    if (anyA) {
      checkBatch(args, args[0], args[xAt], "dy [B, .., O] and x [B, .., I]");
      x = hold(args, xAt);
    }
    if (anyB) {
      checkBatch(args, args[0], args[hAt], "dy [B, .., O] and h [B, .., R]");
      h = args.typed(hAt, DType::f32).as<float>();
      hWidth = args[hAt].last();
    }
    std::vector<int64_t> ranks(adapters, -1);
    size_t outputs = at;
    for (const Pair& p : pairs) outputs += (modeX != Mode::none) + needsHidden(p);
    if (modeX != Mode::none) {
      const View& v = args.activations(outputs);
      checkBatch(args, args[0], v, "dy [B, .., O] and dx [B, .., I]");
      EXPECT(args, !anyA || v.last() == in, "dx of x's shape", v.describe());
      in = v.last();
      made = std::make_unique<Activations>(args, v, modeX == Mode::add);
      dx = *made;
      outputs++;
    }
    for (Pair& p : pairs) {
      int64_t& r = ranks[adapter++];
      if (modeX != Mode::none) p.a = sideOf(args, at++, r, in, true, held);
      if (needsHidden(p)) p.b = sideOf(args, at++, r, out, false, held);
    }
    adapter = 0;
    for (Pair& p : pairs) {
      int64_t& r = ranks[adapter++];
      if (p.modeA != Mode::none) p.dA = sideGrad(args, outputs++, r, in, true);
      if (p.modeB != Mode::none) p.dB = sideGrad(args, outputs++, r, out, false);
      p.r = std::max<int64_t>(r, 0);
      most = std::max(most, p.r);
      EXPECT(args, p.modeB == Mode::none || p.r <= hWidth, "ranks up to h's",
             std::to_string(p.r) + " beyond " + std::to_string(hWidth));
    }
  }
};

// The gradients of addLowRankRows: with dh = s_g dy B_g, dx = dh A_g, dA_g = dh^T x and
// dB_g = dy^T h over the adapter's own rows. Each is written, or added to what is there.
void addLowRankRowsGrad(const Args& args) {
  Gradients t(args);
  int64_t each = t.batch > 0 ? args[0].rows() / t.batch : 0;
  Rows rows(args, t.adapters, t.groupsAt(), t.batch, each);
  Branches b(args, rows, t.pairs, t.most);
  bool hidden = t.modeX != Mode::none, anyB = t.h != nullptr;
  for (const Pair& p : t.pairs) hidden = hidden || p.modeA != Mode::none;

  Narrow dh;
  std::vector<Part> parts;
  Work work;
  if (hidden) work.product(t.pairs, b, t.out);
  if (anyB) work.product(t.pairs, b, t.out);
  int64_t wanted = b.partsFor(work.flops, work.bytes);
  std::vector<const float*> dyRows = pointers<const float>(t.dy, rows, t.out);
  if (hidden) b.cutDown(parts, wanted, std::max<int64_t>(t.out, 1), false, dh);
  if (hidden && t.out == 0) std::fill_n(dh.data, dh.size * dh.splits, 0.0f);
  if (t.out == 0) parts.clear();
  b.cutOuter(parts, wanted, t.out, false);
  b.run(parts, wanted, [&](const Part& part, float* scratch) {
    if (part.kind == Part::down) return b.down(part, dyRows.data(), t.out, false, dh, scratch);
    int64_t r = t.pairs[part.group].r;
    b.outer(
        part, dyRows.data(), t.out, false, scratch, [&](int64_t from, int64_t to, float* block) {
          for (int64_t i = from; i < to; i++) {
            std::memcpy(block + (i - from) * r, t.h + rows.order[static_cast<size_t>(i)] * t.hWidth,
                        static_cast<size_t>(r) * sizeof(float));
          }
          return block;
        });
  });
  if (!hidden) return;

  parts.clear();
  work = Work();
  if (t.dx) work.product(t.pairs, b, t.in);
  if (t.x) work.product(t.pairs, b, t.in);
  wanted = b.partsFor(work.flops, work.bytes);
  bool fresh = t.modeX == Mode::write;
  if (t.dx) b.cutUp(parts, wanted, t.in, fresh);
  b.cutOuter(parts, wanted, t.in, true);
  std::vector<const float*> xRows = pointers<const float>(t.x, rows, t.in);
  std::vector<float*> dxRows = pointers(t.dx, rows, t.in);
  b.run(parts, wanted, [&](const Part& part, float* scratch) {
    if (part.kind == Part::idle) return b.idle(part, t.dx, nullptr, t.in);
    if (part.kind == Part::up) {
      return b.up(part, dh, true, dxRows.data(), t.in, fresh, nullptr, scratch);
    }
    b.outer(part, xRows.data(), t.in, true, scratch, [&](int64_t from, int64_t to, float* block) {
      return b.read(dh, part.group, from, to, block);
    });
  });
  if (t.made) t.made->settle();
}

}  // namespace

void registerLoraRows(Registry& r) {
  r.push_back({"addLowRankRows", addLowRankRows});
  r.push_back({"addLowRankRows.grad", addLowRankRowsGrad});
}

}  // namespace lowrank

// Attention by tiles of queries and keys with a running softmax; only the log-sum-exp is kept, and
// the gradient computes the probabilities again. A key head is packed once for all queries that
// meet it. Tiles lie on fixed places, so that a query's result depends on its own keys only, and
// what no query of a strip sees is left out.
#include "attention.h"

#include <algorithm>
#include <cmath>

namespace lowrank {

using namespace tiles;

namespace {

struct Softmax {
  float top[kQueries], shrink[kQueries];
  double sum[kQueries];

  void start(int64_t rows) {
    std::fill_n(top, rows, -kInfinity);
    std::fill_n(sum, rows, 0.0);
  }
};

// A worker's memory: a tile of scores and of weights, the queries' block and its result; `kept`
// tiles of a key head, turned keys and values; and a tile of values without the hidden ones.
struct Scratch {
  int64_t tile, kept;
  float *scores, *weights, *q, *y, *finite, *clean, *keys, *values, *gemm;
  Fetch fetch = {};  // what the next block reads and writes

  static int64_t flags(int64_t kept) { return (kept + 15) / 16 * 16; }
  static int64_t size(const Shape& s, int64_t kept, int64_t gemm) {
    return 2 * kQueries * kKeys + 2 * s.block() + flags(kept) + (2 * kept + 1) * s.tile() + gemm;
  }
  Scratch(const Shape& s, int64_t kept, float* base) : tile(s.tile()), kept(kept), scores(base) {
    weights = scores + kQueries * kKeys;
    q = weights + kQueries * kKeys;
    y = q + s.block();
    finite = y + s.block();  // of a tile: 1 if its values have no NaN and no infinity
    clean = finite + flags(kept);
    keys = clean + tile;
    values = keys + kept * tile;
    gemm = values + kept * tile;
  }
  // Where the tile of keys from k0 lies.
  int64_t place(int64_t k0) const { return k0 / kKeys % kept; }
  float* keysAt(int64_t k0) const { return keys + place(k0) * tile; }
  float* valuesAt(int64_t k0) const { return values + place(k0) * tile; }
};

bool finiteRows(const Shape& s, const IsaTable& isa, const float* v, int64_t rows) {
  for (int64_t j = 0; j < rows; j++) {
    if (!isa.allFinite(v + j * s.keyRow(), s.d)) return false;
  }
  return true;
}

// Packs the tiles of one key head.
void packHead(const Shape& s, const IsaTable& isa, const float* k, const float* v, Range keys,
              Scratch& w) {
  for (int64_t k0 = keys.from / kKeys * kKeys; k0 < keys.to; k0 += kKeys) {
    int64_t n = std::min(kKeys, s.length - k0), at = k0 * s.keyRow();
    isa.attention.turn(k + at, s.keyRow(), n, s.d, w.keysAt(k0));
    isa.attention.take(v + at, s.keyRow(), n, s.d, kKeys, w.valuesAt(k0));
    w.finite[w.place(k0)] = finiteRows(s, isa, v + at, n) ? 1 : 0;
  }
}

// The scores that the mask hides become -inf. Says whether there were any.
bool hide(const Shape& s, int64_t batch, const Tile& t, Range keys, float* scores) {
  bool any = false;
  if (!s.mask) return any;
  const uint8_t* seen = s.mask + batch * s.s + t.k0;
  for (int64_t j = keys.from; j < keys.to; j++) {
    if (seen[j]) continue;
    any = true;
    for (int64_t i = 0; i < t.queries; i++) scores[i * kKeys + j] = -kInfinity;
  }
  return any;
}

// y += p v for one row where a hidden p of 0 must not meet a NaN or infinity of v; y and v in
// chunks.
void multiplyRow(const Shape& s, const IsaTable& isa, const float* scores, const float* weights,
                 Span seen, const float* v, float* y, Scratch& w) {
  for (int64_t c = 0; c < s.chunks(); c++) {
    int64_t at = c * kKeys * kTileChannels;
    for (int64_t j = seen.from; j < seen.to; j++) {
      const float* row = v + at + j * kTileChannels;
      float* to = w.clean + at + j * kTileChannels;
      if (scores[j] == -kInfinity) {
        std::fill_n(to, kTileChannels, 0.0f);
      } else {
        std::copy_n(row, kTileChannels, to);
      }
    }
  }
  isa.attention.times(weights, &seen, 1, w.clean, s.d, y, &w.fetch);
}

// What each row holds becomes its result.
void settle(const IsaTable& isa, const Softmax& soft, int64_t rows, int64_t d, const float* from,
            float* y, int64_t row, float* lse) {
  float scale[kQueries];
  for (int64_t i = 0; i < rows; i++) {
    double sum = soft.sum[i];
    scale[i] = sum == 0 ? 1.0f : static_cast<float>(1 / sum);
    lse[i] = sum == 0 ? -kInfinity
                      : static_cast<float>(static_cast<double>(soft.top[i]) + std::log(sum));
  }
  isa.attention.put(from, kQueries, rows, d, scale, false, y, row);
}

void shrinkRow(const Shape& s, const IsaTable& isa, float by, float* y) {
  for (int64_t c = 0; c < s.chunks() && by != 1; c++) {
    float* row = y + c * kQueries * kTileChannels;
    isa.affine(row, by, 0.0f, row, std::min(kTileChannels, s.d - c * kTileChannels));
  }
}

// k and v at the key head's first row; y and q at the query head's first row of the block.
void forwardBlock(const Shape& s, const IsaTable& isa, int64_t batch, int64_t q0, const float* q,
                  const float* k, const float* v, float* y, float* lse, Scratch& w) {
  const AttentionKernels& a = isa.attention;
  int64_t queries = std::min(kQueries, s.t - q0);
  Softmax soft;
  Span seen[kQueries];
  soft.start(queries);
  a.take(q, s.queryRow(), queries, s.d, kQueries, w.q);
  std::fill_n(w.y, s.block(), 0.0f);
  eachTile(s, q0, [&](const Tile& t) {
    Range any = t.seenByAny(s);
    if (w.kept < s.tiles()) packHead(s, isa, k, v, {t.k0, t.k0 + t.keys}, w);
    t.spans(s, seen);
    a.scores(w.q, w.keysAt(t.k0), seen, queries, s.d, s.scale, w.scores, &w.fetch);
    bool hidden = hide(s, batch, t, any, w.scores) || !t.whole(s);
    a.weigh(w.scores, seen, queries, w.weights, soft.top, soft.sum, soft.shrink);
    for (int64_t i = 0; i < queries; i++) {
      shrinkRow(s, isa, soft.shrink[i], w.y + i * kTileChannels);
    }
    const float* values = w.valuesAt(t.k0);
    if (!hidden || w.finite[w.place(t.k0)] != 0) {
      a.times(w.weights, seen, queries, values, s.d, w.y, &w.fetch);
      return;
    }
    for (int64_t i = 0; i < queries; i++) {
      multiplyRow(s, isa, w.scores + i * kKeys, w.weights + i * kKeys, seen[i], values,
                  w.y + i * kTileChannels, w);
    }
  });
  settle(isa, soft, queries, s.d, w.y, y, s.queryRow(), lse);
}

// c [m, n] = alpha a b (+ c) for a few rows and a b that is read where it lies; k within one block.
void fewRows(const IsaTable& isa, GemmTask t, float alpha, bool accumulate, float* pack,
             float* scratch) {
  const GemmKernels& g = isa.product;
  t.alpha = alpha;
  t.accumulate = accumulate;
  g.packRows(&t, 0, t.m, 0, t.k, pack);
  t.aPack = pack;
  int64_t whole = t.n / g.colTile * g.colTile;
  if (whole > 0) g.few(&t, 0, whole, scratch);
  if (whole < t.n) g.gemm(&t, 0, t.m, whole, t.n, scratch);
}

// Whether a call is a single query that the heads of a key head may ask together.
bool single(const Shape& s, const IsaTable& isa) {
  int64_t most = std::min(isa.product.turnedRows, kQueries);
  return s.t == 1 && s.ratio() <= most && s.d <= isa.product.depth(s.d);
}

// Asks for rows of a head that are read next: they lie apart, so that the processor does not by
// itself.
void fetchRows(const float* at, int64_t rows, int64_t step, int64_t d) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t e = 0; e < d; e += 16) __builtin_prefetch(at + i * step + e, 0, 3);
  }
}

// Decoding: the query heads of a key head are the rows of products with its keys and values, which
// are read once, where they lie. Each row is computed as forwardBlock() would.
void forwardOne(const Shape& s, const IsaTable& isa, int64_t batch, const float* q, const float* k,
                const float* v, float* y, float* lse, Scratch& w) {
  int64_t heads = s.ratio(), row = s.keyRow();
  float* pack = w.q;
  Softmax soft;
  Span seen[kQueries];
  soft.start(heads);
  std::fill_n(y, heads * s.d, 0.0f);
  eachTile(s, 0, [&](const Tile& t) {
    Range r = t.seen(s, 0);
    if (r.size() <= 0) return;
    std::fill_n(seen, heads, Span{static_cast<int32_t>(r.from), static_cast<int32_t>(r.to)});
    const float *kAt = k + t.k0 * row, *vAt = v + t.k0 * row;
    fetchRows(vAt + r.from * row, r.size(), row, s.d);
    fewRows(isa,
            gemmTask(heads, r.size(), s.d, {q, 0, s.d, 1}, {kAt + r.from * row, 0, 1, row},
                     w.scores + r.from, kKeys),
            s.scale, false, pack, w.gemm);
    Tile all = t;
    all.queries = heads;
    bool hidden = hide(s, batch, all, r, w.scores) || !r.whole(t.keys);
    // The next tile of keys, or the next head's first one.
    int64_t end = t.k0 + t.keys, first = s.first(0) / kKeys * kKeys;
    const float* then = end < s.length ? k + end * row : k + s.d + first * row;
    fetchRows(then, std::min(s.length - (end < s.length ? end : first), kKeys), row, s.d);
    isa.attention.weigh(w.scores, seen, heads, w.weights, soft.top, soft.sum, soft.shrink);
    for (int64_t i = 0; i < heads; i++) {
      if (soft.shrink[i] != 1) isa.affine(y + i * s.d, soft.shrink[i], 0.0f, y + i * s.d, s.d);
    }
    if (!hidden || finiteRows(s, isa, vAt, t.keys)) {
      fewRows(isa,
              gemmTask(heads, s.d, r.size(), {w.weights + r.from, 0, kKeys, 1},
                       {vAt + r.from * row, 0, row, 1}, y, s.d),
              1.0f, true, pack, w.gemm);
      return;
    }
    isa.attention.take(vAt, row, t.keys, s.d, kKeys, w.values);
    for (int64_t i = 0; i < heads; i++) {
      isa.attention.take(y + i * s.d, s.d, 1, s.d, kQueries, w.y);
      multiplyRow(s, isa, w.scores + i * kKeys, w.weights + i * kKeys, seen[i], w.values, w.y, w);
      isa.attention.put(w.y, kQueries, 1, s.d, nullptr, false, y + i * s.d, s.d);
    }
  });
  for (int64_t i = 0; i < heads; i++) {
    double sum = soft.sum[i];
    if (sum != 0) isa.affine(y + i * s.d, static_cast<float>(1 / sum), 0.0f, y + i * s.d, s.d);
    lse[i] = sum == 0 ? -kInfinity
                      : static_cast<float>(static_cast<double>(soft.top[i]) + std::log(sum));
  }
}

// Query blocks of a key head's query heads, `per` of them a task, so that every thread has some.
int64_t blocksPerTask(const Shape& s, int64_t blocks, int threads) {
  int64_t heads = s.b * s.g, all = blocks * s.ratio();
  if (threads <= 1 || heads == 0 || all == 0) return std::max<int64_t>(1, all);
  int64_t parts = std::min(all, (4 * threads + heads - 1) / heads);
  return (all + parts - 1) / parts;
}

void attention(const Args& args) {
  size_t at;
  Shape s = {attentionCall(args, at)};
  Floats q = floats(args, 0), k = floats(args, 1), v = floats(args, 2);
  Activations result(args, args[at]);
  float *y = result, *lse = args[at + 1].as<float>();
  const IsaTable& isa = *args.context.isa;
  int64_t blocks = s.blocks(), all = blocks * s.ratio();
  int64_t per = blocksPerTask(s, blocks, args.context.threads), tasks = (all + per - 1) / per;
  // A single block packs its tiles one after the other.
  bool one = single(s, isa);
  int64_t kept = per > 1 && !one ? s.tiles() : std::min<int64_t>(s.tiles(), 1);
  int64_t size = Scratch::size(s, kept, one ? isa.product.scratch : 0);
  Workspace held(args.context.memory,
                 static_cast<uint64_t>(size * args.context.threads) * sizeof(float));
  float* scratch = held.as<float>();
  if (one) {
    args.context.rows(
        s.b * s.g, s.ratio() * s.length * s.d / 4, [&](int64_t from, int64_t to, int worker) {
          Scratch w(s, kept, scratch + worker * size);
          for (int64_t i = from; i < to; i++) {
            int64_t batch = i / s.g, group = i % s.g, head = batch * s.h + group * s.ratio();
            int64_t keyAt = s.key(batch, group);
            forwardOne(s, isa, batch, q + head * s.d, k + keyAt, v + keyAt, y + head * s.d,
                       lse + head, w);
          }
        });
    result.settle();
    return;
  }
  auto blockAt = [&](int64_t task, int64_t i) {
    int64_t head = task / tasks % s.g * s.ratio() + i % s.ratio();
    return s.query(task / tasks / s.g, head) + i / s.ratio() * kQueries * s.queryRow();
  };
  // What block i of a task reads and writes; a task's first one comes with its keys and values.
  auto fetch = [&](int64_t task, int64_t i, Fetch& f) {
    f.count = 0;
    if (i >= std::min((task % tasks + 1) * per, all)) i = ++task % tasks * per;
    if (task >= s.b * s.g * tasks) return;
    int64_t rows = std::min(kQueries, s.t - i / s.ratio() * kQueries), at = blockAt(task, i);
    fetchHead(f, y + at, s.queryRow(), rows, s.d);
    if (i == task % tasks * per) {
      int64_t first = s.key(task / tasks / s.g, task / tasks % s.g);
      int64_t keys = std::min(s.length, kKeys);
      fetchHead(f, v + first, s.keyRow(), keys, s.d);
      fetchHead(f, k + first, s.keyRow(), keys, s.d);
    }
    fetchHead(f, q + at, s.queryRow(), rows, s.d);
  };
  auto run = [&](int64_t task, int worker) {
    Scratch w(s, kept, scratch + worker * size);
    int64_t group = task / tasks % s.g, batch = task / tasks / s.g;
    int64_t from = task % tasks * per, to = std::min(from + per, all);
    int64_t last = std::min(((to - 1) / s.ratio() + 1) * kQueries, s.t) - 1;
    const float *kAt = k + s.key(batch, group), *vAt = v + s.key(batch, group);
    Range keys = {s.first(from / s.ratio() * kQueries), s.last(last)};
    if (kept == s.tiles()) packHead(s, isa, kAt, vAt, keys, w);
    for (int64_t i = from; i < to; i++) {
      int64_t q0 = i / s.ratio() * kQueries, head = group * s.ratio() + i % s.ratio();
      int64_t qAt = blockAt(task, i);
      fetch(task, i + 1, w.fetch);
      forwardBlock(s, isa, batch, q0, q + qAt, kAt, vAt, y + qAt,
                   lse + (batch * s.h + head) * s.t + q0, w);
    }
  };
  args.context.rows(s.b * s.g * tasks, std::min(kQueries * per, s.t * s.ratio()) * s.length,
                    [&](int64_t from, int64_t to, int worker) {
                      for (int64_t i = from; i < to; i++) run(i, worker);
                    });
  result.settle();
}

}  // namespace

void registerAttention(Registry& r) {
  r.push_back({"attention", attention});
  r.push_back({"attention.grad", attentionGrad});
}

}  // namespace lowrank

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
  float top[kQueries];
  double sum[kQueries];
};

// Weights of row i against its largest score so far; what y [queries, D] holds is shrunk to it. Of
// `all` columns those that are not seen become 0.
void weighRow(const Shape& s, const IsaTable& isa, int64_t i, Range seen, Range all, Softmax& soft,
              float* y, Scratch& w) {
  const float* row = w.scores + i * kKeys;
  float* p = w.weights + i * kKeys;
  float before = soft.top[i], best = std::max(before, isa.maxOf(row + seen.from, seen.size()));
  // With nothing seen so far the shift is 0 and every weight exp(-inf) = 0 (or NaN stays NaN).
  float shift = best == -kInfinity ? 0.0f : best;
  double part = isa.expSum(row + seen.from, 1.0f, shift, p + seen.from, seen.size());
  clearUnseen(p, seen, all);
  if (best != before && before != -kInfinity) {
    float shrink = std::exp(before - best);
    soft.sum[i] *= shrink;
    isa.affine(y + i * s.queryRow(), shrink, 0.0f, y + i * s.queryRow(), s.d);
  }
  soft.sum[i] += part;
  soft.top[i] = best;
}

// y += p v for row i where a hidden p of 0 must not meet a NaN or infinity of v.
void multiplyRow(const Shape& s, Range seen, int64_t i, const float* v, float* y,
                 const Scratch& w) {
  for (int64_t j = seen.from; j < seen.to; j++) {
    if (w.scores[i * kKeys + j] == -kInfinity) continue;
    float p = w.weights[i * kKeys + j];
    for (int64_t e = 0; e < s.d; e++) y[e] += p * v[j * s.keyRow() + e];
  }
}

// Whether the values of a tile have no NaN and no infinity.
bool finiteTile(const Shape& s, const IsaTable& isa, const Tile& t, const float* v, Scratch& w) {
  float& known = w.finite[w.place(t.k0)];
  if (known < 0) {
    known = 1;
    for (int64_t j = 0; j < t.keys && known > 0; j++) {
      if (!isa.allFinite(v + (t.k0 + j) * s.keyRow(), s.d)) known = 0;
    }
  }
  return known > 0;
}

// What row i holds becomes its result.
void settle(const IsaTable& isa, const Softmax& soft, int64_t i, float* row, int64_t d,
            float* lse) {
  double sum = soft.sum[i];
  if (sum != 0) isa.affine(row, static_cast<float>(1 / sum), 0.0f, row, d);
  *lse =
      sum == 0 ? -kInfinity : static_cast<float>(static_cast<double>(soft.top[i]) + std::log(sum));
}

// k and v at the key head's first row; y and q at the query head's first row of the block.
void forwardBlock(const Shape& s, const IsaTable& isa, int64_t batch, int64_t q0, const float* q,
                  const float* k, const float* v, float* y, float* lse, Scratch& w) {
  int64_t queries = std::min(kQueries, s.t - q0);
  Softmax soft;
  for (int64_t i = 0; i < queries; i++) {
    soft.top[i] = -kInfinity;
    soft.sum[i] = 0;
    std::fill_n(y + i * s.queryRow(), s.d, 0.0f);
  }
  eachTile(s, q0, [&](const Tile& t) {
    if (w.kept < s.tiles()) packHead(s, isa, k, v, {t.k0, t.k0 + t.keys}, false, w);
    bool whole = t.whole(s);
    eachStrip(s, isa, t, [&](const Strip& strip) {
      bool hidden = score(s, isa, batch, t, strip, q, w) || !whole;
      for (int64_t i = strip.row; i < strip.row + strip.rows; i++) {
        weighRow(s, isa, i, t.seen(s, i), strip.seen, soft, y, w);
      }
      if (hidden && !finiteTile(s, isa, t, v, w)) {
        for (int64_t i = strip.row; i < strip.row + strip.rows; i++) {
          multiplyRow(s, t.seen(s, i), i, v + t.k0 * s.keyRow(), y + i * s.queryRow(), w);
        }
      } else {
        multiply(isa, strip.rows, {0, s.d}, strip.seen, w.weights + strip.row * kKeys, kKeys,
                 {w.valuesAt(t.k0), t.keys}, y + strip.row * s.queryRow(), s.queryRow(), 1.0f, true,
                 w.gemm);
      }
    });
  });
  for (int64_t i = 0; i < queries; i++) {
    settle(isa, soft, i, y + i * s.queryRow(), s.d, lse + i);
  }
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
  return s.t == 1 && s.ratio() <= isa.product.turnedRows && s.d <= isa.product.depth(s.d);
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
  Shape one = s;  // its rows of y stand as the heads do
  one.h = 1;
  Softmax soft;
  for (int64_t i = 0; i < heads; i++) {
    soft.top[i] = -kInfinity;
    soft.sum[i] = 0;
    std::fill_n(y + i * s.d, s.d, 0.0f);
  }
  eachTile(s, 0, [&](const Tile& t) {
    Range seen = t.seen(s, 0);
    if (seen.size() <= 0) return;
    w.finite[w.place(t.k0)] = -1;
    const float *kAt = k + t.k0 * row, *vAt = v + t.k0 * row;
    float *scores = w.scores, *weights = w.weights;
    fetchRows(vAt + seen.from * row, seen.size(), row, s.d);
    fewRows(isa,
            gemmTask(heads, seen.size(), s.d, {q, 0, s.d, 1}, {kAt + seen.from * row, 0, 1, row},
                     scores + seen.from, kKeys),
            s.scale, false, w.q, w.gemm);
    bool hidden = hide(s, batch, t, {0, heads, seen, seen}, w) || !seen.whole(t.keys);
    // The next tile of keys, or the next head's first one.
    int64_t end = t.k0 + t.keys, first = s.first(0) / kKeys * kKeys;
    const float* then = end < s.length ? k + end * row : k + s.d + first * row;
    fetchRows(then, std::min(s.length - (end < s.length ? end : first), kKeys), row, s.d);
    for (int64_t i = 0; i < heads; i++) weighRow(one, isa, i, seen, seen, soft, y, w);
    if (hidden && !finiteTile(s, isa, t, v, w)) {
      for (int64_t i = 0; i < heads; i++) multiplyRow(s, seen, i, vAt, y + i * s.d, w);
      return;
    }
    fewRows(isa,
            gemmTask(heads, s.d, seen.size(), {weights + seen.from, 0, kKeys, 1},
                     {vAt + seen.from * row, 0, row, 1}, y, s.d),
            1.0f, true, w.dy, w.gemm);
  });
  for (int64_t i = 0; i < heads; i++) settle(isa, soft, i, y + i * s.d, s.d, lse + i);
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
  int64_t blocks = (s.t + kQueries - 1) / kQueries, all = blocks * s.ratio();
  int64_t per = blocksPerTask(s, blocks, args.context.threads), tasks = (all + per - 1) / per;
  // A single block packs its tiles one after the other.
  bool one = single(s, isa);
  int64_t kept = per > 1 && !one ? s.tiles() : std::min<int64_t>(s.tiles(), 1);
  int64_t size = Scratch::size(s, isa, kept, one ? 0 : 2);
  Workspace held(args.context.memory,
                 static_cast<uint64_t>(size * args.context.threads) * sizeof(float));
  float* scratch = held.as<float>();
  if (one) {
    args.context.rows(
        s.b * s.g, s.ratio() * s.length * s.d / 4, [&](int64_t from, int64_t to, int worker) {
          Scratch w(s, isa, kept, scratch + worker * size);
          for (int64_t i = from; i < to; i++) {
            int64_t batch = i / s.g, group = i % s.g, head = batch * s.h + group * s.ratio();
            int64_t keyAt = (batch * s.s * s.g + group) * s.d;
            forwardOne(s, isa, batch, q + head * s.d, k + keyAt, v + keyAt, y + head * s.d,
                       lse + head, w);
          }
        });
    result.settle();
    return;
  }
  auto run = [&](int64_t task, int worker) {
    Scratch w(s, isa, kept, scratch + worker * size);
    int64_t group = task / tasks % s.g, batch = task / tasks / s.g;
    int64_t from = task % tasks * per, to = std::min(from + per, all);
    int64_t last = std::min(((to - 1) / s.ratio() + 1) * kQueries, s.t) - 1;
    const float* kAt = k + (batch * s.s * s.g + group) * s.d;
    const float* vAt = v + (batch * s.s * s.g + group) * s.d;
    Range keys = {s.first(from / s.ratio() * kQueries), s.last(last)};
    if (kept == s.tiles()) packHead(s, isa, kAt, vAt, keys, false, w);
    for (int64_t i = from; i < to; i++) {
      int64_t q0 = i / s.ratio() * kQueries, head = group * s.ratio() + i % s.ratio();
      int64_t qAt = ((batch * s.t + q0) * s.h + head) * s.d;
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

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

// Weights of a strip against the largest score so far; what y [queries, D] holds is shrunk to it.
void weigh(const Shape& s, const IsaTable& isa, const Tile& t, const Strip& strip, Softmax& soft,
           float* y, Scratch& w) {
  for (int64_t i = strip.row; i < strip.row + strip.rows; i++) {
    Range seen = t.seen(s, i);
    const float* row = w.scores + i * kKeys;
    float* p = w.weights + i * kKeys;
    float before = soft.top[i], best = std::max(before, isa.maxOf(row + seen.from, seen.size()));
    // With nothing seen so far the shift is 0 and every weight exp(-inf) = 0 (or NaN stays NaN).
    float shift = best == -kInfinity ? 0.0f : best;
    double part = isa.expSum(row + seen.from, 1.0f, shift, p + seen.from, seen.size());
    clearUnseen(p, seen, strip.seen);
    if (best != before && before != -kInfinity) {
      float shrink = std::exp(before - best);
      soft.sum[i] *= shrink;
      isa.affine(y + i * s.queryRow(), shrink, 0.0f, y + i * s.queryRow(), s.d);
    }
    soft.sum[i] += part;
    soft.top[i] = best;
  }
}

// y += p v where a hidden p of 0 must not meet a NaN or infinity of v.
void multiplySeen(const Shape& s, const Tile& t, const Strip& strip, const float* v, float* y,
                  const Scratch& w) {
  for (int64_t i = strip.row; i < strip.row + strip.rows; i++) {
    Range seen = t.seen(s, i);
    for (int64_t j = seen.from; j < seen.to; j++) {
      if (w.scores[i * kKeys + j] == -kInfinity) continue;
      float p = w.weights[i * kKeys + j];
      for (int64_t e = 0; e < s.d; e++) y[i * s.queryRow() + e] += p * v[j * s.keyRow() + e];
    }
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
      weigh(s, isa, t, strip, soft, y, w);
      if (hidden && !finiteTile(s, isa, t, v, w)) {
        multiplySeen(s, t, strip, v + t.k0 * s.keyRow(), y, w);
      } else {
        multiply(isa, strip.rows, {0, s.d}, strip.seen, w.weights + strip.row * kKeys, kKeys,
                 {w.valuesAt(t.k0), t.keys}, y + strip.row * s.queryRow(), s.queryRow(), 1.0f, true,
                 w.gemm);
      }
    });
  });
  for (int64_t i = 0; i < queries; i++) {
    float* row = y + i * s.queryRow();
    double sum = soft.sum[i];
    if (sum != 0) isa.affine(row, static_cast<float>(1 / sum), 0.0f, row, s.d);
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
  args.atLeast(5, 5);
  bool masked = args.integer(0, 0, 1) != 0;
  args.counts(masked ? 6 : 5, 5);
  Shape s = check(args);
  Floats q = floats(args, 0), k = floats(args, 1), v = floats(args, 2);
  size_t at = masked ? 4 : 3;
  args.shaped(at, {s.b, s.t, s.h, s.d});
  args.shaped(at + 1, {s.b, s.h, s.t});
  float* y = args.out(at).as<float>();
  float* lse = args.out(at + 1).as<float>();
  const IsaTable& isa = *args.context.isa;
  int64_t blocks = (s.t + kQueries - 1) / kQueries, all = blocks * s.ratio();
  int64_t per = blocksPerTask(s, blocks, args.context.threads), tasks = (all + per - 1) / per;
  // A single block packs its tiles one after the other.
  int64_t kept = per > 1 ? s.tiles() : std::min<int64_t>(s.tiles(), 1);
  int64_t size = Scratch::size(s, isa, kept, 2);
  Workspace held(args.context.memory,
                 static_cast<uint64_t>(size * args.context.threads) * sizeof(float));
  float* scratch = held.as<float>();
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
}

}  // namespace

void registerAttention(Registry& r) {
  r.push_back({"attention", attention});
  r.push_back({"attention.grad", attentionGrad});
}

}  // namespace lowrank

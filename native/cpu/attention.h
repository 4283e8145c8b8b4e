// What attention and its gradient share: tiles of queries and keys, and a key head packed by tiles.
#pragma once

#include <algorithm>
#include <limits>

#include "../common/calls/attention.h"
#include "kernels.h"

namespace lowrank::tiles {

constexpr int64_t kQueries = 64;
constexpr int64_t kKeys = 128;
constexpr int64_t kStrip = 16;  // rows that are cut to what they see where a tile is seen in part
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Shape : AttentionCall {
  // The keys query `i` may see but for the mask: [first, last).
  int64_t last(int64_t i) const {
    return causal ? std::clamp<int64_t>(i + length - t + 1, 0, length) : length;
  }
  int64_t first(int64_t i) const {
    return window > 0 ? std::max<int64_t>(0, i + length - t - window + 1) : 0;
  }
  int64_t queryRow() const { return h * d; }
  int64_t keyRow() const { return g * d; }
  int64_t ratio() const { return g > 0 ? h / g : 0; }
  int64_t tiles() const { return (length + kKeys - 1) / kKeys; }
};

// B of a product: `lines` columns in panels of a tile's width, each with all its `k` rows.
struct Panels {
  const float* at;
  int64_t k;
};

// Packs B, whose elements are `row` apart along k and `col` from line to line.
inline void packPanels(const IsaTable& isa, const float* b, int64_t row, int64_t col, int64_t lines,
                       int64_t k, float* to) {
  const GemmKernels& g = isa.product;
  GemmTask t = gemmTask(0, lines, k, {}, {b, 0, row, col}, nullptr, 0);
  int64_t step = g.depth(k), width = k <= step ? std::max<int64_t>(lines, 1) : g.colTile;
  for (int64_t j = 0; j < lines; j += width) {
    int64_t end = std::min(j + width, lines);
    for (int64_t p = 0; p < k; p += step) {
      g.packCols(&t, j, end, p, std::min(step, k - p), to + j * k + p * g.paddedCols(end - j));
    }
  }
}

struct Range {
  int64_t from, to;
  int64_t size() const { return to - from; }
  bool whole(int64_t n) const { return from == 0 && to == n; }
};

// c [m, cols] = alpha a[:, along] b[along, cols] (+ c); cols start at a whole tile, and a part of
// a longer b.k lies within one block of it.
inline void multiply(const IsaTable& isa, int64_t m, Range cols, Range along, const float* a,
                     int64_t aRow, const Panels& b, float* c, int64_t cRow, float alpha,
                     bool accumulate, float* scratch) {
  const GemmKernels& g = isa.product;
  bool together = along.whole(b.k) && b.k <= g.depth(b.k);
  int64_t width = together && g.narrow ? g.narrowCols : g.colTile;
  for (int64_t j = cols.from; j < cols.to; j += width) {
    int64_t n = std::min(width, cols.to - j);
    GemmTask t = gemmTask(m, n, along.size(), {a + along.from, 0, aRow, 1}, {}, c + j, cRow);
    t.alpha = alpha;
    t.accumulate = accumulate;
    t.bPack = b.at + j * b.k + along.from * (together ? 0 : g.paddedCols(n));
    if (g.narrow) {
      g.narrow(&t, 0, m);
    } else {
      g.gemm(&t, 0, m, 0, n, scratch);
    }
  }
}

// A worker's memory: a tile of scores and of weights; the query block's q and dy, packed; and of
// one key head `kept` tiles, packed: K' and either V, or V' and K for the gradient.
struct Scratch {
  int64_t slot, kept;
  float *gemm, *scores, *weights, *delta, *q, *dy, *finite, *keys, *values, *keyRows;

  static int64_t slotOf(const Shape& s, const IsaTable& isa) {
    return kKeys * isa.product.paddedCols(s.d);
  }
  static int64_t size(const Shape& s, const IsaTable& isa, int64_t kept, int packs) {
    return isa.product.scratch + 2 * kQueries * kKeys + kQueries + 2 * slotOf(s, isa) +
           (kept + 15) / 16 * 16 + packs * kept * slotOf(s, isa);
  }
  Scratch(const Shape& s, const IsaTable& isa, int64_t tiles, float* base)
      : slot(slotOf(s, isa)), kept(tiles), gemm(base) {
    scores = gemm + isa.product.scratch;
    weights = scores + kQueries * kKeys;
    delta = weights + kQueries * kKeys;
    q = delta + kQueries;
    dy = q + slot;
    finite = dy + slot;  // of a tile: 1 if its values have no NaN and no infinity, -1 if not known
    keys = finite + (kept + 15) / 16 * 16;
    values = keys + kept * slot;
    keyRows = values + kept * slot;
  }
  // Where the tile of keys from k0 lies.
  int64_t place(int64_t k0) const { return k0 / kKeys % kept; }
  float* keysAt(int64_t k0) const { return keys + place(k0) * slot; }
  float* valuesAt(int64_t k0) const { return values + place(k0) * slot; }
  float* keyRowsAt(int64_t k0) const { return keyRows + place(k0) * slot; }
};

// A tile: queries [q0, q0 + queries) and keys [k0, k0 + keys).
struct Tile {
  int64_t q0, queries, k0, keys;
  // The keys of it, counted from k0, that query q0 + i may see but for the mask.
  Range seen(const Shape& s, int64_t i) const {
    int64_t from = std::clamp<int64_t>(s.first(q0 + i) - k0, 0, keys);
    return {from, std::clamp<int64_t>(s.last(q0 + i) - k0, from, keys)};
  }
  Range seenByAny(const Shape& s) const { return {seen(s, 0).from, seen(s, queries - 1).to}; }
  bool whole(const Shape& s) const {
    return seen(s, 0).whole(keys) && seen(s, queries - 1).whole(keys);
  }
};

// Some rows of a tile, with the keys that any of them sees, and the same in whole panels.
struct Strip {
  int64_t row, rows;
  Range seen, cols;
};

// f(tile) for each tile of keys that some query of the block sees.
template <class F>
void eachTile(const Shape& s, int64_t q0, F f) {
  int64_t queries = std::min(kQueries, s.t - q0), to = s.last(q0 + queries - 1);
  for (int64_t k0 = s.first(q0) / kKeys * kKeys; k0 < to; k0 += kKeys) {
    f(Tile{q0, queries, k0, std::min(kKeys, s.length - k0)});
  }
}

// f(strip) for the rows of a tile: all at once where all see all of it.
template <class F>
void eachStrip(const Shape& s, const IsaTable& isa, const Tile& t, F f) {
  int64_t step = t.whole(s) ? t.queries : kStrip, tile = isa.product.colTile;
  for (int64_t i = 0; i < t.queries; i += step) {
    int64_t rows = std::min(step, t.queries - i);
    Range seen = {t.seen(s, i).from, t.seen(s, i + rows - 1).to};
    Range cols = {seen.from / tile * tile, std::min((seen.to + tile - 1) / tile * tile, t.keys)};
    if (seen.size() > 0) f(Strip{i, rows, seen, cols});
  }
}

// The scores of a strip that the mask hides become -inf. Says whether there were any.
inline bool hide(const Shape& s, int64_t batch, const Tile& t, const Strip& strip, Scratch& w) {
  bool any = false;
  if (!s.mask) return any;
  const uint8_t* seen = s.mask + batch * s.s + t.k0;
  for (int64_t j = strip.seen.from; j < strip.seen.to; j++) {
    if (seen[j]) continue;
    any = true;
    for (int64_t i = 0; i < strip.rows; i++) w.scores[(strip.row + i) * kKeys + j] = -kInfinity;
  }
  return any;
}

// The scores of a strip, hidden ones -inf. Says whether the mask hides any.
inline bool score(const Shape& s, const IsaTable& isa, int64_t batch, const Tile& t,
                  const Strip& strip, const float* q, Scratch& w) {
  multiply(isa, strip.rows, strip.cols, {0, s.d}, q + strip.row * s.queryRow(), s.queryRow(),
           {w.keysAt(t.k0), s.d}, w.scores + strip.row * kKeys, kKeys, s.scale, false, w.gemm);
  return hide(s, batch, t, strip, w);
}

// Weights outside of `seen` become 0.
inline void clearUnseen(float* row, Range seen, Range all) {
  std::fill(row + all.from, row + seen.from, 0.0f);
  std::fill(row + seen.to, row + all.to, 0.0f);
}

// Packs the tiles of one key head in `keys`, for the forward pass or for the gradient.
inline void packHead(const Shape& s, const IsaTable& isa, const float* k, const float* v,
                     Range keys, bool gradient, Scratch& w) {
  int64_t row = s.keyRow();
  for (int64_t k0 = keys.from / kKeys * kKeys; k0 < keys.to; k0 += kKeys) {
    int64_t n = std::min(kKeys, s.length - k0);
    const float *kAt = k + k0 * row, *vAt = v + k0 * row;
    packPanels(isa, kAt, 1, row, n, s.d, w.keysAt(k0));
    if (gradient) {
      packPanels(isa, vAt, 1, row, n, s.d, w.valuesAt(k0));
      packPanels(isa, kAt, row, 1, s.d, n, w.keyRowsAt(k0));
    } else {
      packPanels(isa, vAt, row, 1, s.d, n, w.valuesAt(k0));
      w.finite[w.place(k0)] = -1;
    }
  }
}

}  // namespace lowrank::tiles

namespace lowrank {

void attentionGrad(const Args& args);

}  // namespace lowrank

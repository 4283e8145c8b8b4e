// Attention within a tile of kTileQueries queries and kTileKeys keys. Rows of D channels lie in
// scratch memory in chunks of kTileChannels: [chunk][row][channel], so that every step is a
// constant and a copy of q, k, v or dy serves each product that reads it. Keys and values that meet
// queries along D are turned: panels of kCols of them, [panel][channel][key].
//
// Strips of rows are cut to what they see. An element is one sum in a register, in the order of
// what is summed, whatever the strip it falls into.

namespace {

// Most rows of a strip of two products at once.
constexpr int kBoth = kRows / 2;
// Columns beside a strip's that turnedTimes() may meet with those that it sees.
constexpr int64_t kBeside = (kRows + kWidth - 1) / kWidth * kWidth;

VEC_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
VEC_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int kFetchRows = 8;

VEC_INLINE void fetchRows(Fetch* f) {
  for (int n = 0; n < kFetchRows && f->count > 0; n++) {
    FetchRows* r = f->list + f->count - 1;
    for (int64_t i = 0; i < r->lines; i++) __builtin_prefetch(r->at + i * kLine, 0, 2);
    r->at += r->step;
    if (--r->rows <= 0) f->count--;
  }
}

// acc[i][j] += a[i * ARow] b[j]
template <int64_t ARow, int MR, int NV>
VEC_INLINE void addStep(const float* a, const vf (&b)[NV], vf (&acc)[MR][NV]) {
  if constexpr (ARow == 1) return outer(a, b, acc);
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
    vf av = splat(a[i * ARow]);
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = fused(av, b[j], acc[i][j]);
  }
}

// acc += a b over `depth` steps of at most kPart that follow each other.
template <int MR, int NV, int64_t ARow, int64_t AStep, int64_t BStep>
VEC_INLINE void multiplySteps(const float* a, const float* b, int64_t depth, vf (&acc)[MR][NV]) {
  int64_t p = 0;
#ifdef VEC_LANES
  for (; AStep == 1 && p + kWidth <= depth; p += kWidth, a += kWidth, b += kWidth * BStep) {
    vf av[MR];
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) av[i] = load(a + i * ARow);
    laneSteps<MR, NV, BStep>(av, b, acc);
  }
#endif
  for (; p < depth; p++, a += AStep, b += BStep) {
    vf bv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) bv[j] = load(b + j * kWidth);
    addStep<ARow>(a, bv, acc);
  }
}

template <int MR, int NV>
VEC_INLINE void clear(vf (*acc)[NV]) {
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = splat(0.0f);
  }
}

// Height of the next block of a strip of at most `limit` rows, so that no short one is left where
// it can be helped.
VEC_INLINE int nextRows(int64_t left, int limit) {
  const int half = limit > 8 ? 8 : limit > 4 ? 4 : 2;
  if (left >= limit && left != 2 * half) return limit;
  for (int h = half; h > 1; h /= 2) {
    if (left >= h) return h;
  }
  return 1;
}

template <int N>
struct Rows {
  static constexpr int rows = N;
};
// f(Rows<height>()) for a height of nextRows().
template <int Limit, class F>
VEC_INLINE void withRows(int height, F f) {
  if (height == Limit) return f(Rows<Limit>());
  if (Limit > 8 && height == 8) return f(Rows<(Limit > 8 ? 8 : 1)>());
  if (Limit > 4 && height == 4) return f(Rows<(Limit > 4 ? 4 : 1)>());
  if (height == 2) return f(Rows<2>());
  f(Rows<1>());
}

// Chunks of `rows` rows of x [rows, d], filled up to whole vectors with zeros.
void tTake(const float* x, int64_t step, int64_t rows, int64_t d, int64_t chunkRows, float* to) {
  for (int64_t e = 0; e < d; e += kTileChannels, to += chunkRows * kTileChannels) {
    int64_t n = least(kTileChannels, d - e);
    for (int64_t i = 0; i < rows; i++) {
      const float* from = x + i * step + e;
      float* row = to + i * kTileChannels;
      int64_t c = 0;
      for (; c + kWidth <= n; c += kWidth) store(row + c, load(from + c));
      if (c < n) store(row + c, loadPart(from + c, n - c));
    }
  }
}

// And back: x = s * row (+ x), each row with its own s, or 1.
void tPut(const float* from, int64_t chunkRows, int64_t rows, int64_t d, const float* scale,
          bool add, float* x, int64_t step) {
  for (int64_t e = 0; e < d; e += kTileChannels, from += chunkRows * kTileChannels) {
    int64_t n = least(kTileChannels, d - e);
    for (int64_t i = 0; i < rows; i++) {
      const float* row = from + i * kTileChannels;
      float *to = x + i * step + e, s = scale ? scale[i] : 1.0f;
      for (int64_t c = 0; c < n; c += kWidth) {
        int64_t r = n - c;
        vf v = load(row + c) * s;
        if (r >= kWidth) {
          store(to + c, add ? load(to + c) + v : v);
        } else {
          storePart(to + c, add ? loadPart(to + c, r) + v : v, r);
        }
      }
    }
  }
}

// Panels of the turned rows of x [rows, d], the last filled up with zeros.
void tTurn(const float* x, int64_t step, int64_t rows, int64_t d, float* to) {
  for (int64_t j = 0; j < rows; j += kCols, to += d * kCols) {
    packLines(x + j * step, step, least(kCols, rows - j), kCols, d, to);
  }
}

// Rows of a strip against one panel of turned keys; `at` its first column.
template <int MR, int NV>
static void scoreBlock(const float* q, const float* keys, int64_t d, float scale, float* to) {
  vf acc[MR][NV];
  clear<MR, NV>(acc);
  for (int64_t e = 0; e < d; e += kTileChannels, q += kTileQueries * kTileChannels) {
    multiplySteps<MR, NV, kTileChannels, 1, kCols>(q, keys + e * kCols, least(kTileChannels, d - e),
                                                   acc);
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) store(to + i * kTileKeys + j * kWidth, acc[i][j] * scale);
  }
}

// Of a panel of kCols columns from `at` on, the one vector that [from, to) touches, or all.
struct Part {
  int64_t skip, vectors;
};
VEC_INLINE Part partOf(int64_t at, int64_t from, int64_t to) {
  int64_t first = most(0, from - at) / kWidth, last = (least(to - at, kCols) + kWidth - 1) / kWidth;
  if (last - first > 1) return {0, kVecs};
  return {first * kWidth, last - first};
}

// f(row, rows, part of the panel's columns) for the strips that see some of a panel; the spans of
// rows never go back.
template <class F>
VEC_INLINE void eachStrip(const Span* seen, int64_t rows, int limit, int64_t at, F f) {
  for (int64_t i = 0; i < rows;) {
    int height = nextRows(rows - i, limit);
    int64_t from = seen[i].from, to = seen[i + height - 1].to;
    if (to > at && from < at + kCols && to > from) f(i, height, partOf(at, from, to));
    i += height;
  }
}

// scores [rows, keys] = scale q k', what lies in vectors that a row's strip sees some of.
void tScores(const float* q, const float* keys, const Span* seen, int64_t rows, int64_t d,
             float scale, float* to, Fetch* fetch) {
  int64_t end = seen[rows - 1].to;
  for (int64_t at = seen[0].from / kCols * kCols; at < end; at += kCols) {
    eachStrip(seen, rows, kRows, at, [&](int64_t i, int height, Part part) {
      const float *a = q + i * kTileChannels, *b = keys + at * d + part.skip;
      float* c = to + i * kTileKeys + at + part.skip;
      fetchRows(fetch);
      withRows<kRows>(height, [&](auto h) {
        if (part.vectors > 1) {
          scoreBlock<decltype(h)::rows, kVecs>(a, b, d, scale, c);
        } else {
          scoreBlock<decltype(h)::rows, 1>(a, b, d, scale, c);
        }
      });
    });
  }
}

VEC_INLINE float largest(vf v) {
  float lane[kWidth];
  store(lane, v);
#pragma GCC unroll 4
  for (int h = kWidth / 2; h > 0; h /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < h; i++) lane[i] = lane[i] > lane[i + h] ? lane[i] : lane[i + h];
  }
  return lane[0];
}
VEC_INLINE double treeSum(vd v) {
  double lane[kWidth / 2];
  *(vd_any*)lane = v;
#pragma GCC unroll 4
  for (int h = kWidth / 4; h > 0; h /= 2) {
#pragma GCC unroll 4
    for (int i = 0; i < h; i++) lane[i] += lane[i + h];
  }
  return lane[0];
}
VEC_INLINE double sumOf(vf v) {
  float lane[kWidth];
  store(lane, v);
  return treeSum(wide(lane) + wide(lane + kWidth / 2));
}

// Lanes of the vector from column `at` on that a span holds.
VEC_INLINE vi within(Span s, int64_t at) {
  vi column = lanes() + (int32_t)at;
  return (column >= s.from) & (column < s.to);
}

// p = e^(x - top) of a row's span, 0 beside it up to whole vectors and in [from, to); top becomes
// the largest so far, and what the row held before is worth `shrink` of it now.
VEC_INLINE void weighRow(const float* x, Span span, int64_t from, int64_t to, float* p, float* top,
                         double* sum, float* shrink) {
  const float lowest = -__builtin_inff();
  int64_t first = span.from / kWidth * kWidth, last = span.to / kWidth * kWidth;
  bool cut = first != span.from;
  vf best = splat(lowest);
  int64_t j = first;
  if (cut) {
    best = larger(blend(within(span, j), load(x + j), best), best);
    j += kWidth;
  }
  for (; j < last; j += kWidth) best = larger(load(x + j), best);
  if (j < span.to) best = larger(blend(within(span, j), load(x + j), splat(lowest)), best);
  float before = *top, now = largest(best);
  now = before > now ? before : now;
  // With nothing seen so far the shift is 0 and every weight exp(-inf) = 0 (or NaN stays NaN).
  float shift = now == lowest ? 0.0f : now;
  for (j = from; j < first; j += kWidth) store(p + j, splat(0.0f));
  vf acc = splat(0.0f);
  if (cut) {
    vf e = blend(within(span, j), vexpBelow(load(x + j) - shift), splat(0.0f));
    store(p + j, e);
    acc += e;
    j += kWidth;
  }
  for (; j < last; j += kWidth) {
    vf e = vexpBelow(load(x + j) - shift);
    store(p + j, e);
    acc += e;
  }
  if (j < span.to) {
    vf e = blend(within(span, j), vexpBelow(load(x + j) - shift), splat(0.0f));
    store(p + j, e);
    acc += e;
    j += kWidth;
  }
  for (; j < to; j += kWidth) store(p + j, splat(0.0f));
  *shrink = 1.0f;
  if (now != before && before != lowest) {
    *shrink = vexpBelow(splat(before - now))[0];
    *sum *= *shrink;
  }
  *sum += sumOf(acc);
  *top = now;
}

// The weights of rows whose scores tScores() made; an empty span gives zeros.
void tWeigh(const float* scores, const Span* seen, int64_t rows, float* weights, float* top,
            double* sum, float* shrink) {
  for (int64_t i = 0; i < rows;) {
    int height = nextRows(rows - i, kRows);
    int64_t from = seen[i].from / kWidth * kWidth, to = seen[i + height - 1].to;
    for (int64_t end = i + height; i < end; i++) {
      weighRow(scores + i * kTileKeys, seen[i], from, to, weights + i * kTileKeys, top + i, sum + i,
               shrink + i);
    }
  }
}

// c += a b, a [rows, depth] with steps of its own, b and c in chunks.
template <int MR, int NV, int64_t ARow, int64_t AStep>
static void timesBlock(const float* a, const float* b, int64_t depth, float* c) {
  vf acc[MR][NV];
  clear<MR, NV>(acc);
  multiplySteps<MR, NV, ARow, AStep, kTileChannels>(a, b, depth, acc);
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      float* at = c + i * kTileChannels + j * kWidth;
      store(at, load(at) + acc[i][j]);
    }
  }
}

// c [rows, d] += a b along the span of each strip of rows.
template <int64_t ARow, int64_t AStep>
VEC_INLINE void timesAll(const float* a, const Span* spans, int64_t rows, const float* b,
                         int64_t bRows, int64_t d, float* c, int64_t cRows, Fetch* fetch) {
  for (int64_t e = 0; e < d; e += kCols) {
    const float* bAt = b + e / kTileChannels * bRows * kTileChannels + e % kTileChannels;
    float* cAt = c + e / kTileChannels * cRows * kTileChannels + e % kTileChannels;
    bool narrow = d - e <= kWidth;
    for (int64_t i = 0; i < rows;) {
      int height = nextRows(rows - i, kRows);
      int64_t from = spans[i].from, depth = spans[i + height - 1].to - from;
      if (depth > 0) {
        const float *aOf = a + i * ARow + from * AStep, *bOf = bAt + from * kTileChannels;
        float* cOf = cAt + i * kTileChannels;
        fetchRows(fetch);
        withRows<kRows>(height, [&](auto h) {
          if (narrow) {
            timesBlock<decltype(h)::rows, 1, ARow, AStep>(aOf, bOf, depth, cOf);
          } else {
            timesBlock<decltype(h)::rows, kVecs, ARow, AStep>(aOf, bOf, depth, cOf);
          }
        });
      }
      i += height;
    }
  }
}

// c [queries, d] += p b, p [queries, keys]; b and c in chunks of kTileKeys and kTileQueries rows.
void tTimes(const float* p, const Span* seen, int64_t queries, const float* b, int64_t d, float* c,
            Fetch* fetch) {
  timesAll<kTileKeys, 1>(p, seen, queries, b, kTileKeys, d, c, kTileQueries, fetch);
}

// c [keys, d] += p' b; b and c in chunks of kTileQueries and kTileKeys rows.
void tTurnedTimes(const float* p, const Span* seeing, int64_t keys, const float* b, int64_t d,
                  float* c, Fetch* fetch) {
  timesAll<1, kTileKeys>(p, seeing, keys, b, kTileQueries, d, c, kTileKeys, fetch);
}

// P and dS of a block, straight from the sums q k' and dy v'.
template <int MR, int NV>
static void gradBlock(const AttentionTile* t, int64_t row, int64_t at, int64_t panel) {
  vf s[MR][NV], g[MR][NV];
  clear<MR, NV>(s);
  clear<MR, NV>(g);
  const float *q = t->q + row * kTileChannels, *dy = t->dy + row * kTileChannels;
  int64_t d = t->d, place = panel * d + (at - panel);
  const float *k = t->keys + place, *v = t->values + place;
  for (int64_t e = 0; e < d; e += kTileChannels) {
    int64_t depth = least(kTileChannels, d - e);
    for (int64_t p = 0; p < depth; p++, k += kCols, v += kCols) {
      vf kv[NV], vv[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) kv[j] = load(k + j * kWidth);
      addStep<kTileChannels>(q + p, kv, s);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) vv[j] = load(v + j * kWidth);
      addStep<kTileChannels>(dy + p, vv, g);
    }
    q += kTileQueries * kTileChannels;
    dy += kTileQueries * kTileChannels;
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      int64_t column = at + j * kWidth, to = (row + i) * kTileKeys + column;
      vf p = vexp(fused(s[i][j], splat(t->scale), splat(-t->lse[row + i])));
      vf ds = p * fused(g[i][j], splat(t->scale), splat(-t->delta[row + i]));
      if (t->partial) {
        vi kept = within(t->kept[row + i], column);
        if (t->mask) kept &= (vi)(load(t->mask + column) != 0.0f);
        p = blend(kept, p, splat(0.0f));
        ds = blend(kept, ds, splat(0.0f));
      }
      store(t->p + to, p);
      store(t->ds + to, ds);
    }
  }
}

VEC_INLINE void zeros(float* p, int64_t from, int64_t to) {
  for (int64_t j = from; j < to; j += kWidth) store(p + j, splat(0.0f));
}

// P = e^(scale q k' - lse) and dS = P (scale dy v' - delta), 0 where a key is hidden and a bit
// beside what a strip sees, so that strips of keys may be multiplied with whole strips of queries.
void tGradTile(const AttentionTile* t) {
  const Span* seen = t->seen;
  for (int64_t at = seen[0].from / kCols * kCols; at < seen[t->queries - 1].to; at += kCols) {
    eachStrip(seen, t->queries, kBoth, at, [&](int64_t i, int height, Part part) {
      fetchRows(t->fetch);
      withRows<kBoth>(height, [&](auto h) {
        if (part.vectors > 1) {
          gradBlock<decltype(h)::rows, kVecs>(t, i, at, at);
        } else {
          gradBlock<decltype(h)::rows, 1>(t, i, at + part.skip, at);
        }
      });
    });
  }
  if (!t->partial) return;
  for (int64_t i = 0; i < t->queries;) {
    int height = nextRows(t->queries - i, kBoth);
    int64_t from = seen[i].from / kWidth * kWidth, to = seen[i + height - 1].to;
    to = to > from ? (to + kWidth - 1) / kWidth * kWidth : from;
    int64_t before = most(0, from - kBeside), after = least(kTileKeys, to + kBeside);
    for (int64_t end = i + height; i < end; i++) {
      float *p = t->p + i * kTileKeys, *ds = t->ds + i * kTileKeys;
      zeros(p, before, from);
      zeros(p, to, after);
      zeros(ds, before, from);
      zeros(ds, to, after);
    }
  }
}

// out[i] = scale * the sum of a b over row i.
void tRowDots(const float* a, const float* b, int64_t step, int64_t rows, int64_t d, float scale,
              float* out) {
  const int h = kWidth / 2;
  for (int64_t i = 0; i < rows; i++, a += step, b += step) {
    vd s = {}, r = {};
    int64_t e = 0;
    for (; e + 2 * h <= d; e += 2 * h) {
      s += wide(a + e) * wide(b + e);
      r += wide(a + e + h) * wide(b + e + h);
    }
    double sum = treeSum(s + r);
    for (; e < d; e++) sum += (double)a[e] * b[e];
    out[i] = (float)(sum * scale);
  }
}

constexpr AttentionKernels kAttention = {kCols,  tTake,  tPut,         tTurn,     tScores,
                                         tWeigh, tTimes, tTurnedTimes, tGradTile, tRowDots};

}  // namespace

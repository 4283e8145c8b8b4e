// Products with a narrow side of rank r, for the layers' A [r, in] and B [out, r]. An element's
// arithmetic depends on r and its own row and column only, however the work is cut. A change of
// rank r is summed by itself and then added once, so that it is not rounded to W's last place r
// times.

namespace {

// Lane i of the result is the sum of v[i]'s lanes, neighbours first.
VEC_INLINE vf sums(vf* v) {
  vi even = {}, odd = {};
  for (int i = 0; i < kWidth; i++) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
  }
#pragma GCC unroll 4
  for (int n = kWidth / 2; n > 0; n /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
      v[i] = SHUFFLE2(v[2 * i], v[2 * i + 1], even) + SHUFFLE2(v[2 * i], v[2 * i + 1], odd);
    }
  }
  return v[0];
}

constexpr int kDots = kManyRegisters ? 16 : kWidth;  // sums of a block: a lane for each, or more

// NR dot products of each of MR rows from element `at` on, at most kDots of them.
template <int MR, int NR, bool Ahead>
static void dotBlock(const float* const* x, int64_t at, const float* a, int64_t aStep, int64_t n,
                     float* h, int64_t r) {
  static_assert(MR * NR <= kDots && kDots % kWidth == 0, "the registers have room");
  vf acc[MR][NR] = {};
  const float* row[MR];
  for (int i = 0; i < MR; i++) row[i] = x[i] + at;
  int64_t p = 0;
  for (; p + kWidth <= n; p += kWidth) {
    vf xv[MR];
#pragma GCC unroll 4
    for (int i = 0; i < MR; i++) {
      xv[i] = load(row[i] + p);
      if (Ahead) __builtin_prefetch(x[MR + i] + at + p, 0, 2);
    }
#pragma GCC unroll 16
    for (int j = 0; j < NR; j++) {
      vf av = load(a + j * aStep + p);
#pragma GCC unroll 4
      for (int i = 0; i < MR; i++) acc[i][j] = fused(xv[i], av, acc[i][j]);
    }
  }
  if (p < n) {
    for (int j = 0; j < NR; j++) {
      vf av = loadPart(a + j * aStep + p, n - p);
      for (int i = 0; i < MR; i++) acc[i][j] = fused(loadPart(row[i] + p, n - p), av, acc[i][j]);
    }
  }
  vf all[kDots] = {};
#pragma GCC unroll 4
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 16
    for (int j = 0; j < NR; j++) all[i * NR + j] = acc[i][j];
  }
  if (MR == 1 && NR % kWidth == 0) {
    for (int j = 0; j < NR; j += kWidth) store(h + j, sums(all + j));
    return;
  }
  float lane[kDots];
#pragma GCC unroll 4
  for (int j = 0; j < MR * NR; j += kWidth) store(lane + j, sums(all + j));
  for (int i = 0; i < MR; i++) {
    for (int j = 0; j < NR; j++) h[i * r + j] = lane[i * NR + j];
  }
}

// `left` of the r columns of h. Ahead: MR rows more follow, which are fetched in passing.
template <int MR, int NR>
static void dotRows(const float* const* x, int64_t at, const float* a, int64_t aStep, int64_t left,
                    int64_t n, float* h, int64_t r, bool ahead) {
  for (; left >= NR; left -= NR, a += NR * aStep, h += NR, ahead = false) {
    if (ahead) {
      dotBlock<MR, NR, true>(x, at, a, aStep, n, h, r);
    } else {
      dotBlock<MR, NR, false>(x, at, a, aStep, n, h, r);
    }
  }
  if constexpr (NR > 1) {
    if (left > 0) dotRows<MR, NR / 2>(x, at, a, aStep, left, n, h, r, ahead);
  }
}

// h [rows, r] = x [rows, n] a [r, n]^T, the rows of x from element `at` of each pointer on
static void rankDown(const float* const* x, int64_t at, int64_t rows, const float* a, int64_t aStep,
                     int64_t r, int64_t n, float* h) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    dotRows<4, kDots / 4>(x + i, at, a, aStep, r, n, h + i * r, r, i + 8 <= rows);
  }
  if (i + 2 <= rows) {
    dotRows<2, kDots / 2>(x + i, at, a, aStep, r, n, h + i * r, r, false);
    i += 2;
  }
  if (i < rows) dotRows<1, kDots>(x + i, at, a, aStep, r, n, h + i * r, r, false);
}

// kWidth rows of R floats, one after another, become R vectors of a column each: every round moves
// the lowest bit of an element's place to the top.
template <int R>
VEC_INLINE void columns(vf* v) {
  vi even = {}, odd = {};
  for (int i = 0; i < kWidth; i++) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
  }
#pragma GCC unroll 8
  for (int round = 1; round < R; round *= 2) {
    vf t[R];
#pragma GCC unroll 16
    for (int i = 0; i < R / 2; i++) {
      t[i] = SHUFFLE2(v[2 * i], v[2 * i + 1], even);
      t[i + R / 2] = SHUFFLE2(v[2 * i], v[2 * i + 1], odd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) v[i] = t[i];
  }
}

// The same back: R vectors of a column each become kWidth rows of R floats, one after another.
template <int R>
VEC_INLINE void interleaved(vf* v) {
  vi low = {}, high = {};
  for (int i = 0; i < kWidth; i++) {
    low[i] = i / 2 + (i % 2) * kWidth;
    high[i] = low[i] + kWidth / 2;
  }
#pragma GCC unroll 8
  for (int round = 1; round < R; round *= 2) {
    vf t[R];
#pragma GCC unroll 16
    for (int i = 0; i < R / 2; i++) {
      t[2 * i] = SHUFFLE2(v[i], v[i + R / 2], low);
      t[2 * i + 1] = SHUFFLE2(v[i], v[i + R / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) v[i] = t[i];
  }
}

// All of a whole matrix of R columns up to the last full kWidth rows; how many rows that is.
template <int R>
static int64_t turnWhole(const float* b, int64_t n, float* t, int64_t tStep) {
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    vf v[R];
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) v[i] = load(b + j * R + i * kWidth);
    columns<R>(v);
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) store(t + i * tStep + j, v[i]);
  }
  return j;
}

// t [r, n] = b [n, r]^T, rows of t tStep apart
static void turn(const float* b, int64_t n, int64_t r, float* t, int64_t tStep) {
  int64_t done = 0;
  if (r == 1) done = turnWhole<1>(b, n, t, tStep);
  if (r == 2) done = turnWhole<2>(b, n, t, tStep);
  if (r == 4) done = turnWhole<4>(b, n, t, tStep);
  if (r == 8 && r <= kWidth) done = turnWhole<8>(b, n, t, tStep);
  if (r == 16 && r <= kWidth) done = turnWhole<16>(b, n, t, tStep);
  for (; done + kWidth <= n; done += kWidth) {
    for (int64_t k = 0; k < r; k += kWidth) {
      int64_t wide = r - k < kWidth ? r - k : kWidth;
      vf v[kWidth];
      const float* from = b + done * r + k;
      for (int i = 0; i < kWidth; i++) {
        v[i] = wide == kWidth ? load(from + i * r) : loadPart(from + i * r, wide);
      }
      columns<kWidth>(v);
      for (int64_t i = 0; i < wide; i++) store(t + (k + i) * tStep + done, v[i]);
    }
  }
  for (; done < n; done++) {
    for (int64_t k = 0; k < r; k++) t[k * tStep + done] = b[done * r + k];
  }
}

template <int R>
static int64_t turnBackWhole(const float* t, int64_t tStep, int64_t n, float* b, bool add) {
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    vf v[R];
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) v[i] = load(t + i * tStep + j);
    interleaved<R>(v);
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) {
      float* to = b + j * R + i * kWidth;
      store(to, add ? load(to) + v[i] : v[i]);
    }
  }
  return j;
}

// b [n, r] = t [r, n]^T (+ b), rows of t tStep apart
static void turnBack(const float* t, int64_t tStep, int64_t n, int64_t r, float* b, bool add) {
  int64_t done = 0;
  if (r == 1) done = turnBackWhole<1>(t, tStep, n, b, add);
  if (r == 2) done = turnBackWhole<2>(t, tStep, n, b, add);
  if (r == 4) done = turnBackWhole<4>(t, tStep, n, b, add);
  if (r == 8 && r <= kWidth) done = turnBackWhole<8>(t, tStep, n, b, add);
  if (r == 16 && r <= kWidth) done = turnBackWhole<16>(t, tStep, n, b, add);
  for (; done + kWidth <= n; done += kWidth) {
    for (int64_t k = 0; k < r; k += kWidth) {
      int64_t wide = r - k < kWidth ? r - k : kWidth;
      vf v[kWidth];
      for (int64_t i = 0; i < kWidth; i++) {
        v[i] = i < wide ? load(t + (k + i) * tStep + done) : splat(0.0f);
      }
      interleaved<kWidth>(v);
      for (int i = 0; i < kWidth; i++) {
        float* to = b + (done + i) * r + k;
        if (wide == kWidth) {
          store(to, add ? load(to) + v[i] : v[i]);
        } else {
          storePart(to, add ? loadPart(to, wide) + v[i] : v[i], wide);
        }
      }
    }
  }
  for (; done < n; done++) {
    for (int64_t k = 0; k < r; k++) {
      float v = t[k * tStep + done];
      b[done * r + k] = add ? b[done * r + k] + v : v;
    }
  }
}

constexpr int kRankVecs = kManyRegisters ? 4 : 2;  // vectors of a block's row that fit

template <int MR, int NV>
static void upBlock(float* const* c, int64_t at, const float* p, int64_t r, const float* q,
                    int64_t qStep, bool ahead) {
  vf acc[MR][NV] = {};
  for (int i = 0; ahead && i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) __builtin_prefetch(c[MR + i] + at + j * kWidth, 1, 2);
  }
  for (int64_t k = 0; k < r; k++) {
    vf qv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) qv[j] = load(q + k * qStep + j * kWidth);
#pragma GCC unroll 4
    for (int i = 0; i < MR; i++) {
      vf pv = splat(p[i * r + k]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] = fused(pv, qv[j], acc[i][j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      float* to = c[i] + at + j * kWidth;
      store(to, load(to) + acc[i][j]);
    }
  }
}

template <int MR>
static void upRows(float* const* c, int64_t at, int64_t cols, const float* p, int64_t r,
                   const float* q, int64_t qStep, bool ahead) {
  int64_t j = 0;
  for (; j + kRankVecs * kWidth <= cols; j += kRankVecs * kWidth) {
    upBlock<MR, kRankVecs>(c, at + j, p, r, q + j, qStep, ahead);
  }
  for (; j + kWidth <= cols; j += kWidth) upBlock<MR, 1>(c, at + j, p, r, q + j, qStep, ahead);
  if (j == cols) return;
  int64_t rest = cols - j;
  for (int i = 0; i < MR; i++) {
    vf acc = {};
    for (int64_t k = 0; k < r; k++) {
      acc = fused(splat(p[i * r + k]), loadPart(q + k * qStep + j, rest), acc);
    }
    float* to = c[i] + at + j;
    storePart(to, loadPart(to, rest) + acc, rest);
  }
}

// c [rows, cols] += p [rows, r] q [r, cols], the rows of c from element `at` of each pointer on
static void rankUp(float* const* c, int64_t at, int64_t rows, int64_t cols, const float* p,
                   int64_t r, const float* q, int64_t qStep) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    upRows<4>(c + i, at, cols, p + i * r, r, q, qStep, i + 8 <= rows);
  }
  for (; i < rows; i++) upRows<1>(c + i, at, cols, p + i * r, r, q, qStep, false);
}

template <int KR, int NV, bool Ahead>
static void outerBlock(const float* const* x, int64_t at, int64_t rows, const float* p, int64_t r,
                       float* g, int64_t gStep, bool add) {
  vf acc[KR][NV] = {};
  for (int64_t i = 0; i < rows; i++) {
    const float *row = x[i] + at, *side = p + i * r;
    vf xv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      xv[j] = load(row + j * kWidth);
      if (Ahead) __builtin_prefetch(x[rows + i] + at + j * kWidth, 0, 2);
    }
    outer(side, xv, acc);
  }
#pragma GCC unroll 8
  for (int k = 0; k < KR; k++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      float* to = g + k * gStep + j * kWidth;
      store(to, add ? load(to) + acc[k][j] : acc[k][j]);
    }
  }
}

template <int KR, int NV>
static void outerRanks(const float* const* x, int64_t at, int64_t rows, const float* p, int64_t r,
                       int64_t cols, float* g, int64_t gStep, bool add, bool ahead) {
  int64_t j = 0;
  for (; j + NV * kWidth <= cols; j += NV * kWidth) {
    if (ahead) {
      outerBlock<KR, NV, true>(x, at + j, rows, p, r, g + j, gStep, add);
    } else {
      outerBlock<KR, NV, false>(x, at + j, rows, p, r, g + j, gStep, add);
    }
  }
  for (; j + kWidth <= cols; j += kWidth) {
    outerBlock<KR, 1, false>(x, at + j, rows, p, r, g + j, gStep, add);
  }
  if (j == cols) return;
  int64_t rest = cols - j;
  for (int k = 0; k < KR; k++) {
    vf acc = {};
    for (int64_t i = 0; i < rows; i++) {
      acc = fused(splat(p[i * r + k]), loadPart(x[i] + at + j, rest), acc);
    }
    float* to = g + k * gStep + j;
    storePart(to, add ? loadPart(to, rest) + acc : acc, rest);
  }
}

// g [r, cols] = p [rows, r]^T x [rows, cols] (+ g), the rows of x from element `at` on. Ahead: as
// many rows more follow, which are fetched in passing.
static void rankOuter(const float* const* x, int64_t at, int64_t rows, const float* p, int64_t r,
                      int64_t cols, float* g, int64_t gStep, bool add, bool ahead) {
  constexpr int KR = 4 * kRankVecs / 2;  // with 2 vectors as many sums as 4 with kRankVecs
  int64_t k = 0;
  for (; k + KR <= r; k += KR) {
    outerRanks<KR, 2>(x, at, rows, p + k, r, cols, g + k * gStep, gStep, add, ahead && k == 0);
  }
  if (KR > 4 && k + 4 <= r) {
    outerRanks<4, kRankVecs>(x, at, rows, p + k, r, cols, g + k * gStep, gStep, add,
                             ahead && k == 0);
    k += 4;
  }
  for (; k < r; k++) {
    outerRanks<1, kRankVecs>(x, at, rows, p + k, r, cols, g + k * gStep, gStep, add,
                             ahead && k == 0);
  }
}

}  // namespace

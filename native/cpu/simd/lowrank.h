// Products with a narrow side of rank r, for the layers' A [r, in] and B [out, r]. An element's
// arithmetic depends on r and its own row and column only, however the work is cut. A change of
// rank r is summed by itself and then added once, so that it is not rounded to W's last place r
// times.

namespace {

VEC_INLINE float across(vf v) {
  float lane[kWidth];
  store(lane, v);
  for (int n = kWidth / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; i++) lane[i] += lane[i + n];
  }
  return lane[0];
}

// NR dot products of each of MR rows.
template <int MR, int NR>
static void dotBlock(const float* x, const float* a, int64_t n, int64_t r, float s, float* h) {
  vf acc[MR][NR] = {};
  int64_t p = 0;
  for (; p + kWidth <= n; p += kWidth) {
    vf xv[MR];
#pragma GCC unroll 4
    for (int i = 0; i < MR; i++) xv[i] = load(x + i * n + p);
#pragma GCC unroll 8
    for (int j = 0; j < NR; j++) {
      vf av = load(a + j * n + p);
#pragma GCC unroll 4
      for (int i = 0; i < MR; i++) acc[i][j] += xv[i] * av;
    }
  }
  if (p < n) {
    for (int j = 0; j < NR; j++) {
      vf av = loadPart(a + j * n + p, n - p);
      for (int i = 0; i < MR; i++) acc[i][j] += loadPart(x + i * n + p, n - p) * av;
    }
  }
  for (int i = 0; i < MR; i++) {
    for (int j = 0; j < NR; j++) h[i * r + j] = s * across(acc[i][j]);
  }
}

template <int MR>
static void dotRows(const float* x, const float* a, int64_t r, int64_t n, float s, float* h) {
  constexpr int NR = 8 / MR;  // independent sums enough to hide an addition's delay
  int64_t k = 0;
  for (; k + NR <= r; k += NR) dotBlock<MR, NR>(x, a + k * n, n, r, s, h + k);
  for (; k < r; k++) dotBlock<MR, 1>(x, a + k * n, n, r, s, h + k);
}

// h [rows, r] = s * x [rows, n] a [r, n]^T
static void rankDown(const float* x, int64_t rows, const float* a, int64_t r, int64_t n, float s,
                     float* h) {
  int64_t i = 0;
  for (; i + 2 <= rows; i += 2) dotRows<2>(x + i * n, a, r, n, s, h + i * r);
  if (i < rows) dotRows<1>(x + i * n, a, r, n, s, h + i * r);
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
  if (r > kWidth) {
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
  }
  for (; done < n; done++) {
    for (int64_t k = 0; k < r; k++) t[k * tStep + done] = b[done * r + k];
  }
}

template <int MR, int NV>
static void upBlock(float* c, int64_t cStep, const float* p, int64_t pStep, int64_t r,
                    const float* q, int64_t qStep) {
  vf acc[MR][NV];
#pragma GCC unroll 4
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = splat(0.0f);
  }
  for (int64_t k = 0; k < r; k++) {
    vf qv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) qv[j] = load(q + k * qStep + j * kWidth);
#pragma GCC unroll 4
    for (int i = 0; i < MR; i++) {
      vf pv = splat(p[i * pStep + k]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] += pv * qv[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      float* to = c + i * cStep + j * kWidth;
      store(to, load(to) + acc[i][j]);
    }
  }
}

template <int MR>
static void upRows(float* c, int64_t cStep, int64_t cols, const float* p, int64_t pStep, int64_t r,
                   const float* q, int64_t qStep) {
  int64_t j = 0;
  for (; j + 2 * kWidth <= cols; j += 2 * kWidth) {
    upBlock<MR, 2>(c + j, cStep, p, pStep, r, q + j, qStep);
  }
  for (; j + kWidth <= cols; j += kWidth) {
    upBlock<MR, 1>(c + j, cStep, p, pStep, r, q + j, qStep);
  }
  if (j == cols) return;
  int64_t rest = cols - j;
  for (int i = 0; i < MR; i++) {
    vf acc = splat(0.0f);
    for (int64_t k = 0; k < r; k++) {
      acc += splat(p[i * pStep + k]) * loadPart(q + k * qStep + j, rest);
    }
    float* to = c + i * cStep + j;
    storePart(to, loadPart(to, rest) + acc, rest);
  }
}

// c [rows, cols] += p [rows, r] q [r, cols]
static void rankUp(float* c, int64_t cStep, int64_t rows, int64_t cols, const float* p,
                   int64_t pStep, int64_t r, const float* q, int64_t qStep) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    upRows<4>(c + i * cStep, cStep, cols, p + i * pStep, pStep, r, q, qStep);
  }
  for (; i < rows; i++) {
    upRows<1>(c + i * cStep, cStep, cols, p + i * pStep, pStep, r, q, qStep);
  }
}

}  // namespace

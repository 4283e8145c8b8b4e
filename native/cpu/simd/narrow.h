// Many rows of few columns, as x A^T of a low rank: A is read once where it lies. Included by
// gemm.h; an element is summed as there.

constexpr int kDirectRows = kVecs > 2 ? 4 : 8;  // at most what edge() has room for

#ifdef VEC_LANES
// Steps [L, kWidth) of K: row i's elements stand in the lanes of a[i]; those of b BStep apart.
template <int MR, int NV, int64_t BStep, int L = 0>
VEC_INLINE void laneSteps(const vf (&a)[MR], const float* b, vf (&acc)[MR][NV]) {
  vf bv[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; j++) bv[j] = load(b + L * BStep + j * kWidth);
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = fusedLane<L>(bv[j], a[i], acc[i][j]);
  }
  if constexpr (L + 1 < kWidth) laneSteps<MR, NV, BStep, L + 1>(a, b, acc);
}
#endif

// c[MR][NV*kWidth] (+)= alpha * a b (+ bias); a in its place, rows aStep apart; b packed.
template <int MR, int NV>
static void direct(int64_t depth, const float* a, int64_t aStep, const float* b, float* c,
                   int64_t cStep, const Update& u) {
  vf acc[MR][NV];
  const float* row[MR];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) {
    row[i] = a + i * aStep;
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = splat(0.0f);
  }
  int64_t p = 0;
#ifdef VEC_LANES
  for (; p + kWidth <= depth; p += kWidth, b += NV * kWidth * kWidth) {
    vf av[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) av[i] = load(row[i] + p);
    laneSteps<MR, NV, NV * kWidth>(av, b, acc);
  }
#endif
  for (; p < depth; p++, b += NV * kWidth) {
    vf bv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) bv[j] = load(b + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
      vf av = splat(row[i][p]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] = multiplyAdd(av, bv[j], acc[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      float* at = c + i * cStep + j * kWidth;
      store(at, updated(acc[i][j], at, u, j * kWidth));
    }
  }
}

typedef void (*DirectKernel)(int64_t, const float*, int64_t, const float*, float*, int64_t,
                             const Update&);

template <int NV>
static DirectKernel pickDirect(int64_t rows) {
  return rows >= kDirectRows ? direct<kDirectRows, NV>
         : rows >= 4         ? direct<4, NV>
         : rows >= 2         ? direct<2, NV>
                             : direct<1, NV>;
}

// Rows [m0, m1) of an f32 A whose lines are rows, by all columns, few and packed already: each
// element of A meets them straight from where it lies.
static void narrow(const GemmTask* t, int64_t m0, int64_t m1) {
  int64_t step = depthOf(t->k), width = paddedCols(t->n);
  for (int64_t i = m0; i < m1;) {
    int64_t left = m1 - i, rows = left >= kDirectRows ? kDirectRows
                                  : left >= 4         ? 4
                                  : left >= 2         ? 2
                                                      : 1;
    for (int64_t p0 = t->k0; p0 < t->k1; p0 += step) {
      int64_t depth = t->k1 - p0 < step ? t->k1 - p0 : step;
      const float* a = (const float*)t->a + i * t->aRow + p0;
      if (left >= 2 * kDirectRows) {
        for (int64_t r = 0; r < rows; r++) {
          const float* next = a + (kDirectRows + r) * t->aRow;
          for (int64_t q = 0; q < depth; q += kLine / 4) __builtin_prefetch(next + q, 0, 2);
        }
      }
      for (int64_t j = 0; j < t->n; j += kCols) {
        int64_t cols = t->n - j < kCols ? t->n - j : kCols, panel = blockCols(cols);
        const float* b = t->bPack + (p0 - t->k0) * width + j * depth;
        DirectKernel kernel = panel == kCols    ? pickDirect<kVecs>(rows)
                              : panel == kWidth ? pickDirect<1>(rows)
                                                : pickDirect<kVecs / 2>(rows);
        Update u = updateOf(t, p0, j);
        float* c = t->c + i * t->cRow + j;
        if (cols == panel) {
          kernel(depth, a, t->aRow, b, c, t->cRow, u);
        } else {
          edge((int)rows, rows, cols, c, t->cRow, u,
               [&](float* block, int64_t blockStep, const Update& v) {
                 kernel(depth, a, t->aRow, b, block, blockStep, v);
               });
        }
      }
    }
    i += rows;
  }
}

// Products of a few rows, as in decoding: B is all there is to read, once, in order, where it lies.
// Included by gemm.h; an element is summed as there.

constexpr int64_t kFewRows = 64;
constexpr int64_t kStreamCols = 1024;  // most columns of one few() call: their sums stay in cache
constexpr int64_t kSumStep = kStreamCols + kWidth;  // floats between rows: not all in one cache set
constexpr int64_t kStreamDepth = 8;                 // lines of B that are read side by side

// sums[MR][cols] += a b, or = a b at the start of a block; a packed, b in its place.
template <class T, int MR>
static void stream(int64_t elements, bool start, const float* a, const T* b, int64_t bStep,
                   int64_t cols, float* sums) {
  constexpr int NV = kVecs;
  for (int64_t j = 0; j < cols; j += kCols) {
    vf acc[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) {
        acc[i][v] = start ? splat(0.0f) : load(sums + i * kSumStep + j + v * kWidth);
      }
    }
    const T* from = b + j;
    const float* ap = a;
    for (int64_t p = 0; p < elements; p += kPair, from += kPair * bStep, ap += MR) {
      bool single = elements - p < kPair;
      if (MR > 1 || sizeof(T) == 2) {  // one row of f32 is fetched best by the processor itself
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
          __builtin_prefetch(from + kStreamDepth * bStep + v * kWidth, 0, 2);
        }
      }
      vf bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) bv[v] = acrossK(from + v * kWidth, bStep, single);
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) {
        vf av = splatStep(ap + i);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[i][v] = multiplyAdd(av, bv[v], acc[i][v]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) store(sums + i * kSumStep + j + v * kWidth, acc[i][v]);
    }
  }
}

template <class T>
static void streamRows(int height, int64_t elements, bool start, const float* a, const T* b,
                       int64_t bStep, int64_t cols, float* sums) {
  switch (height) {
    case 1:
      return stream<T, 1>(elements, start, a, b, bStep, cols, sums);
    case 2:
      return stream<T, 2>(elements, start, a, b, bStep, cols, sums);
    case 4:
      return stream<T, 4>(elements, start, a, b, bStep, cols, sums);
    case 8:
      return stream<T, 8>(elements, start, a, b, bStep, cols, sums);
    default:
      return stream<T, kRows>(elements, start, a, b, bStep, cols, sums);
  }
}

// Adds one block's sums to C, whose lines are rows.
static void settle(const GemmTask* t, int64_t m0, int64_t rows, int64_t n0, int64_t cols,
                   int64_t p0, const float* sums) {
  Update u = updateOf(t, p0, n0);
  for (int64_t i = 0; i < rows; i++) {
    const float* from = sums + i * kSumStep;
    float* c = t->c + (m0 + i) * t->cRow + n0;
    for (int64_t j = 0; j < cols; j += kWidth) {
      store(c + j, updated(load(from + j), c + j, u, j));
    }
  }
}

// The same for a C whose lines are columns; without bias.
static void settleTurned(const GemmTask* t, int64_t m0, int64_t rows, int64_t n0, int64_t cols,
                         int64_t p0, const float* sums) {
  Update u = updateOf(t, p0, 0);
  for (int64_t i = 0; i < rows; i += kWidth) {
    int64_t some = rows - i < kWidth ? rows - i : kWidth;
    for (int64_t j = 0; j < cols; j += kWidth) {
      vf v[kWidth];
      for (int r = 0; r < kWidth; r++) {
        v[r] = r < some ? load(sums + (i + r) * kSumStep + j) : splat(0.0f);
      }
      transpose(v);
      for (int q = 0; q < kWidth; q++) {
        float* c = t->c + (n0 + j + q) * t->cCol + m0 + i;
        vf base = u.accumulate ? some == kWidth ? load(c) : loadPart(c, some) : splat(0.0f);
        vf sum = fused(v[q], splat(u.alpha), base);
        if (some == kWidth) {
          store(c, sum);
        } else {
          storePart(c, sum, some);
        }
      }
    }
  }
}

template <class T>
static void fewOf(const GemmTask* t, int64_t n0, int64_t n1, float* scratch) {
  int64_t step = depthOf(t->k), height = paddedRows(t->m);
  const T* b = (const T*)t->b;
  for (int64_t p0 = t->k0; p0 < t->k1; p0 += step) {
    int64_t elements = t->k1 - p0 < step ? t->k1 - p0 : step, steps = stepsOf(elements);
    const float* block = t->aPack + (p0 - t->k0) / kPair * height;
    for (int64_t q = 0; q < elements; q += kStreamDepth) {
      int64_t some = elements - q < kStreamDepth ? elements - q : kStreamDepth;
      for (int64_t i = 0; i < t->m; i += kRows) {
        int tall = blockRows(t->m - i < kRows ? t->m - i : kRows);
        streamRows<T>(tall, some, q == 0, block + i * steps + q / kPair * tall,
                      b + (p0 + q) * t->bRow + n0, t->bRow, n1 - n0, scratch + i * kSumStep);
      }
    }
    for (int64_t i = 0; i < t->m; i += kRows) {
      int64_t rows = t->m - i < kRows ? t->m - i : kRows;
      (t->cCol == 1 ? settle : settleTurned)(t, i, rows, n0, n1 - n0, p0, scratch + i * kSumStep);
    }
  }
}

// All rows, at most `fewRows` of them and packed already, by columns [n0, n1), a multiple of kCols
// and at most `fewCols` of them, of a B whose lines are rows: read once, in order, where it lies.
static void few(const GemmTask* t, int64_t n0, int64_t n1, float* scratch) {
  if (t->bType == 1) return fewOf<Half>(t, n0, n1, scratch);
  if (t->bType == 2) return fewOf<Brain>(t, n0, n1, scratch);
  fewOf<float>(t, n0, n1, scratch);
}
static_assert(kScratch >= (kFewRows + kRows) * kSumStep, "room for the sums of few()");

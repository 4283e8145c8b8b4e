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
      multiplyStep(ap, bv, acc);
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

// Elements of K of a line that are turned at once; two of 16 bits as one of 32.
#ifdef GEMM_PAIRS
constexpr bool kHalves = false;
#else
constexpr bool kHalves = true;
#endif
template <class T>
constexpr int64_t kTurn = kWidth*(kHalves ? 4 / (int64_t)sizeof(T) : kPair);

typedef float vf_pairs __attribute__((vector_size(kWidth * 4), aligned(2), may_alias));
VEC_INLINE vf loadPairs(const void* p) { return *(const vf_pairs*)p; }
VEC_INLINE vf lowerOf(const Brain*, vf pair) { return (vf)((vu)pair << 16); }
VEC_INLINE vf upperOf(const Brain*, vf pair) { return (vf)((vu)pair & 0xffff0000u); }
VEC_INLINE vf lowerOf(const Half*, vf pair) {
  return widenHalf(__builtin_convertvector((vu)pair & 0xffffu, vh));
}
VEC_INLINE vf upperOf(const Half*, vf pair) {
  return widenHalf(__builtin_convertvector((vu)pair >> 16, vh));
}
// A single element is a step by itself.
VEC_INLINE vf lowerOf(const float*, vf step) { return step; }
VEC_INLINE vf upperOf(const float*, vf step) { return step; }

// Adds the next kTurn elements of K of kWidth lines to the v-th sums of MR rows.
template <int MR, class T>
VEC_INLINE void turnStep(const float* a, const T* b, int64_t line, int v, vf (&acc)[MR][kVecs]) {
  constexpr bool two = kHalves && sizeof(T) == 2;
  vf w[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i++) {
    w[i] = two ? loadPairs(b + i * line) : alongK(b + i * line);
  }
  transpose(w);
#pragma GCC unroll 16
  for (int s = 0; s < kWidth; s++) {
    const float* at = a + (two ? 2 : 1) * s * MR;
    vf first = two ? lowerOf(b, w[s]) : w[s], second = two ? upperOf(b, w[s]) : w[s];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
      acc[i][v] = multiplyAdd(splatStep(at + i), first, acc[i][v]);
      if (two) acc[i][v] = multiplyAdd(splatStep(at + MR + i), second, acc[i][v]);
    }
  }
}

// The same for n < kTurn elements.
template <int MR, class T>
static void turnPart(const float* a, const T* b, int64_t line, int64_t n, int v,
                     vf (&acc)[MR][kVecs]) {
  constexpr int64_t kTile = kWidth * kPair;
  for (int64_t p = 0; p < n; p += kTile, b += kTile, a += kWidth * MR) {
    int64_t some = n - p < kTile ? n - p : kTile;
    vf w[kWidth];
    for (int i = 0; i < kWidth; i++) {
      w[i] = some == kTile ? alongK(b + i * line) : alongKPart(b + i * line, some);
    }
    transpose(w);
    for (int64_t s = 0; s < stepsOf(some); s++) {
      for (int i = 0; i < MR; i++) {
        acc[i][v] = multiplyAdd(splatStep(a + s * MR + i), w[s], acc[i][v]);
      }
    }
  }
}

// What is asked for while a panel is turned: as many bytes as each step reads.
struct Coming {
  const char* at;  // where the next panel goes on, if its lines follow one another in memory
  int64_t across;  // else elements from a line to the same one of the next panel; 0 for none
};

// The first `rows` of MR rows by kCols lines that run along K, one block of K.
template <int MR, class T>
static void turnBlock(int64_t rows, int64_t elements, const float* a, const T* b, int64_t line,
                      float* c, int64_t cStep, const Update& u, Coming* next) {
  constexpr int64_t kBytes = kWidth * kTurn<T> * (int64_t)sizeof(T);
  vf acc[MR][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; v++) acc[i][v] = splat(0.0f);
  }
  int64_t p = 0;
  for (; p + kTurn<T> <= elements; p += kTurn<T>) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; v++) {
      const T* from = b + v * kWidth * line + p;
      if (next->at) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kBytes; i += kLine) __builtin_prefetch(next->at + i, 0, 3);
        next->at += kBytes;
      } else if (next->across) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kWidth; i++) {
          __builtin_prefetch(from + next->across + i * line, 0, 3);
        }
      }
      turnStep<MR>(a + p / kPair * MR, from, line, v, acc);
    }
  }
  for (int v = 0; v < kVecs && p < elements; v++) {
    turnPart<MR>(a + p / kPair * MR, b + v * kWidth * line + p, line, elements - p, v, acc);
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; v++) {
      float* at = c + i * cStep + v * kWidth;
      if (i < rows) store(at, updated(acc[i][v], at, u, v * kWidth));
    }
  }
}

// MR rows by columns [n0, n1), whole panels, of a B whose lines run along K: turned in registers.
// The next panel, of this part or the next one, is fetched meanwhile in the order of memory: from
// neighbouring lines at different places the processor fetches more slowly.
template <int MR, class T>
static void turned(const GemmTask* t, int64_t n0, int64_t n1) {
  int64_t step = depthOf(t->k), height = paddedRows(t->m), line = t->bCol;
  const T* b = (const T*)t->b;
  for (int64_t j = n0; j < n1; j += kCols) {
    int64_t then = j + kCols < n1 ? j + kCols : t->next0;
    bool more = j + kCols < n1 || t->next1 > t->next0;
    Coming next = {more && line == t->k ? (const char*)(b + then * line) : nullptr,
                   more && line != t->k ? (then - j) * line : 0};
    for (int64_t p0 = t->k0; p0 < t->k1; p0 += step) {
      int64_t elements = t->k1 - p0 < step ? t->k1 - p0 : step;
      turnBlock<MR>(t->m, elements, t->aPack + (p0 - t->k0) / kPair * height, b + j * line + p0,
                    line, t->c + j, t->cRow, updateOf(t, p0, j), &next);
    }
  }
}

constexpr int64_t kTurnedRows = kWidth < 16 ? 4 : 8;  // whose sums the registers hold

template <class T>
static void turnedRows(const GemmTask* t, int64_t n0, int64_t n1) {
  switch (blockRows(t->m)) {
    case 1:
      return turned<1, T>(t, n0, n1);
    case 2:
      return turned<2, T>(t, n0, n1);
    case 4:
      return turned<4, T>(t, n0, n1);
    default:
      return turned<kTurnedRows, T>(t, n0, n1);
  }
}

// All rows, packed already, by columns [n0, n1), a multiple of kCols, of a B that is read once
// where it lies: at most `fewRows` rows and `fewCols` columns where its lines are rows, read in
// order; at most `turnedRows` rows where they are columns.
static void few(const GemmTask* t, int64_t n0, int64_t n1, float* scratch) {
  bool rows = t->bCol == 1;
  if (t->bType == 1) return rows ? fewOf<Half>(t, n0, n1, scratch) : turnedRows<Half>(t, n0, n1);
  if (t->bType == 2) return rows ? fewOf<Brain>(t, n0, n1, scratch) : turnedRows<Brain>(t, n0, n1);
  rows ? fewOf<float>(t, n0, n1, scratch) : turnedRows<float>(t, n0, n1);
}
static_assert(kScratch >= (kFewRows + kRows) * kSumStep, "room for the sums of few()");

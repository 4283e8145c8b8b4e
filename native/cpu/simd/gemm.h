// The packed, register-blocked product. Panels of kRows rows of A and kCols = kVecs*kWidth columns
// of B; K in blocks of at most kDepth steps whose number depends on K only. A step is one element
// of K, or kPair = 2 of them where the processor multiplies pairs of bf16 into f32 sums.
//
// An element of C is, for each block of K, a sum in the order of K in one register, then
// alpha * sum + what was there: whatever path computes it, the bits are the same.

namespace {

constexpr int kCols = kVecs * kWidth;
constexpr int64_t kDepth = 768;
constexpr int64_t kRowBlock = kRows * 6;
constexpr int64_t kColBlock = kCols < 32 ? 64 : 128;
constexpr int64_t kScratch = (kRowBlock + kColBlock) * kDepth + 64;
constexpr int64_t kNarrowCols = 64;  // most columns of narrow()
constexpr int64_t kLine = 64;        // bytes of a cache line
constexpr int64_t kFetchSteps = 8;   // steps between two requests for what is packed next

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

VEC_INLINE vf loadAs(const float* p) { return load(p); }
VEC_INLINE vf loadAs(const Half* p) { return widenHalf(*(const vh_any*)p); }
VEC_INLINE vf loadAs(const Brain* p) { return widenBrain(*(const vh_any*)p); }
VEC_INLINE vf partAs(const float* p, int64_t n) { return loadPart(p, n); }
VEC_INLINE vf partAs(const Half* p, int64_t n) {
  vh v = {};
  for (int64_t i = 0; i < n; i++) v[i] = p[i].bits;
  return widenHalf(v);
}
VEC_INLINE vf partAs(const Brain* p, int64_t n) {
  vh v = {};
  for (int64_t i = 0; i < n; i++) v[i] = p[i].bits;
  return widenBrain(v);
}

#if defined(GEMM_PAIRS) && defined(__aarch64__)
#include "pairs_neon.h"
#elif defined(GEMM_PAIRS)
#include "pairs.h"
#else
constexpr int kPair = 1;

// kWidth steps of one line along K; of a part, n < kWidth elements, zeros behind.
template <class T>
VEC_INLINE vf alongK(const T* p) {
  return loadAs(p);
}
template <class T>
VEC_INLINE vf alongKPart(const T* p, int64_t n) {
  return partAs(p, n);
}
// One step of K across kWidth lines that lie side by side.
template <class T>
VEC_INLINE vf acrossK(const T* p, int64_t, bool) {
  return loadAs(p);
}
template <class T>
VEC_INLINE vf acrossKPart(const T* p, int64_t n, int64_t, bool) {
  return partAs(p, n);
}
VEC_INLINE vf splatStep(const float* p) { return splat(*p); }
VEC_INLINE vf multiplyAdd(vf a, vf b, vf sum) { return fused(a, b, sum); }
// One step of K for MR rows, which lie side by side.
template <int MR, int NV>
VEC_INLINE void multiplyStep(const float* a, const vf (&b)[NV], vf (&acc)[MR][NV]) {
  outer(a, b, acc);
}
#endif

#ifndef VEC_TRANSPOSE
// Transposes kWidth vectors in place: log2(kWidth) rounds of interleaving row i with row i +
// kWidth/2.
VEC_INLINE void transpose(vf* v) {
  vi low = {}, high = {};
  for (int i = 0; i < kWidth; i++) {
    low[i] = i / 2 + (i % 2) * kWidth;
    high[i] = low[i] + kWidth / 2;
  }
#pragma GCC unroll 8
  for (int round = 1; round < kWidth; round *= 2) {
    vf t[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth / 2; i++) {
      t[2 * i] = SHUFFLE2(v[i], v[i + kWidth / 2], low);
      t[2 * i + 1] = SHUFFLE2(v[i], v[i + kWidth / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; i++) v[i] = t[i];
  }
}
#endif

// Stores v as lanes [g, g + kWidth) of a step of a panel of W; lanes beyond it spill into the next
// step, which is stored later, or else are left out.
template <int W>
VEC_INLINE void storeStep(float* to, int g, vf v, bool last) {
  if (W - g >= kWidth || (W < kWidth && !last)) {
    store(to + g, v);
  } else {
    storePart(to + g, v, W - g);
  }
}

// One panel whose lines run along K: dst[s * width + i] = step s of line i for i < count, zeros for
// count <= i < width; `elements` of K.
template <class T>
static void packLines(const T* src, int64_t line, int64_t count, int64_t width, int64_t elements,
                      float* dst) {
  constexpr int64_t kTile = kWidth * kPair;
  for (int64_t g = 0; g < width; g += kWidth) {
    int64_t filled = count - g < kWidth ? (count - g > 0 ? count - g : 0) : kWidth;
    int64_t kept = width - g < kWidth ? width - g : kWidth;
    for (int64_t p = 0; p < elements; p += kTile) {
      int64_t deep = elements - p < kTile ? elements - p : kTile;
      int64_t steps = (deep + kPair - 1) / kPair;
      vf v[kWidth];
      const T* from = src + g * line + p;
      for (int i = 0; i < kWidth; i++) {
        v[i] = i >= filled     ? splat(0.0f)
               : deep == kTile ? alongK(from + i * line)
                               : alongKPart(from + i * line, deep);
      }
      transpose(v);
      float* to = dst + p / kPair * width + g;
      for (int64_t i = 0; i < steps; i++) storePart(to + i * width, v[i], kept);
    }
  }
}

// The same for a whole panel of W lines.
template <class T, int W>
static void packWholeLines(const T* src, int64_t line, int64_t elements, float* dst) {
  constexpr int64_t kTile = kWidth * kPair;
  int64_t whole = elements / kTile * kTile;
#pragma GCC unroll 4
  for (int g = 0; g < W; g += kWidth) {
    const T* from = src + g * line;
    float* to = dst;
    for (int64_t p = 0; p < whole; p += kTile, from += kTile, to += kWidth * W) {
      vf v[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; i++) {
        if (g + i >= W) {
          v[i] = splat(0.0f);
          continue;
        }
        v[i] = alongK(from + i * line);
        __builtin_prefetch(from + i * line + 4 * kTile, 0, 0);
      }
      transpose(v);
      bool last = p + kTile == elements;
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; i++) storeStep<W>(to + i * W, g, v[i], last && i == kWidth - 1);
    }
  }
  if (whole < elements) {
    packLines(src + whole, line, W, W, elements - whole, dst + whole / kPair * W);
  }
}

// Steps of one panel, `elements` of K: to[s * width + i] = step s of line i.
template <class T>
VEC_INLINE void packStrip(const T* from, int64_t line, int64_t depth, int64_t have, int64_t width,
                          int64_t elements, float* to) {
  for (int64_t p = 0; p < elements; p += kPair, from += kPair * depth, to += width) {
    bool single = elements - p < kPair;
    for (int64_t g = 0; g < width; g += kWidth) {
      int64_t filled = have - g;
      vf v = {};
      if (line != 1) {
        for (int64_t i = 0; i < kWidth && i < filled; i++)
          v[i] = acrossKPart(from + (g + i) * line, 1, depth, single)[0];
      } else if (filled >= kWidth) {
        v = acrossK(from + g, depth, single);
      } else if (filled > 0) {
        v = acrossKPart(from + g, filled, depth, single);
      }
      if (width - g >= kWidth) {
        store(to + g, v);
      } else {
        storePart(to + g, v, width - g);
      }
    }
  }
}

// The same for a whole panel of W lines that lie side by side.
template <class T, int W>
VEC_INLINE void packWhole(const T* from, int64_t depth, int64_t elements, float* to) {
  for (int64_t p = 0; p < elements; p += kPair, from += kPair * depth, to += W) {
    bool single = elements - p < kPair;
#pragma GCC unroll 8
    for (int g = 0; g < W; g += kWidth) {
      vf v = W - g >= kWidth ? acrossK(from + g, depth, single)
                             : acrossKPart(from + g, W - g, depth, single);
      storeStep<W>(to, g, v, p + kPair >= elements);
    }
  }
}

// Floats of a panel's packed block: a step of each line.
VEC_INLINE int64_t stepsOf(int64_t elements) { return (elements + kPair - 1) / kPair; }

// All panels at once where neighbouring lines lie side by side, a few steps at a time, so that
// memory is read almost in order; the last panel may be narrower.
template <class T>
static void packAcross(const T* src, int64_t line, int64_t depth, int64_t count, int64_t panel,
                       int64_t lastPanel, int64_t elements, float* dst) {
  constexpr int64_t kLines = 8;
  int64_t steps = stepsOf(elements);
  for (int64_t p = 0; p < elements; p += kLines) {
    int64_t some = elements - p < kLines ? elements - p : kLines;
    for (int64_t at = 0; at < count; at += panel) {
      int64_t have = count - at < panel ? count - at : panel;
      int64_t width = have < panel ? lastPanel : panel;
      const T* from = src + at * line + p * depth;
      float* to = dst + at * steps + p / kPair * width;
      if (line != 1 || have < panel) {
        packStrip(from, line, depth, have, width, some, to);
      } else if (panel == kRows) {
        packWhole<T, kRows>(from, depth, some, to);
      } else {
        packWhole<T, kCols>(from, depth, some, to);
      }
    }
  }
}

// Lines [0, count) as panels of `panel`, the last one of `lastPanel` if it is not full.
template <class T>
static void packPanels(const T* src, int64_t line, int64_t depth, int64_t count, int64_t panel,
                       int64_t lastPanel, int64_t elements, float* dst) {
  if (depth != 1) return packAcross(src, line, depth, count, panel, lastPanel, elements, dst);
  int64_t steps = stepsOf(elements);
  for (int64_t at = 0; at < count; at += panel) {
    int64_t have = count - at < panel ? count - at : panel;
    const T* from = src + at * line;
    float* to = dst + at * steps;
    if (have < panel) {
      packLines(from, line, have, lastPanel, elements, to);
    } else if (panel == kRows) {
      packWholeLines<T, kRows>(from, line, elements, to);
    } else {
      packWholeLines<T, kCols>(from, line, elements, to);
    }
  }
}

static void pack(const void* src, int type, int64_t offset, int64_t line, int64_t depth,
                 int64_t count, int64_t panel, int64_t lastPanel, int64_t elements, float* dst) {
  if (type == 1) {
    packPanels((const Half*)src + offset, line, depth, count, panel, lastPanel, elements, dst);
  } else if (type == 2) {
    packPanels((const Brain*)src + offset, line, depth, count, panel, lastPanel, elements, dst);
  } else {
    packPanels((const float*)src + offset, line, depth, count, panel, lastPanel, elements, dst);
  }
}

// What is packed next, asked for a few cache lines at a time while the present block is computed.
struct Ahead {
  const char* at = nullptr;
  int64_t run = 0, step = 0, left = 0;  // bytes of a run, bytes between runs, runs
  int64_t done = 0, share = 0;          // bytes of the present run; cache lines a fetch
  int64_t wait = 0;                     // fetches to pass over, so that all is near when used
};

VEC_INLINE void fetch(Ahead* f) {
  if (f->wait > 0) {
    f->wait--;
    return;
  }
  for (int64_t n = 0; n < f->share && f->left > 0; n++) {
    __builtin_prefetch(f->at + f->done, 0, 2);
    f->done += kLine;
    if (f->done >= f->run) {
      f->done = 0;
      f->at += f->step;
      f->left--;
    }
  }
}

// Elements [p0, p1) of K of lines [i0, i1), spread over `fetches`.
static Ahead aheadOf(const void* data, int type, int64_t line, int64_t depth, int64_t i0,
                     int64_t i1, int64_t p0, int64_t p1, int64_t fetches) {
  Ahead f;
  int64_t size = type == 0 ? 4 : 2;
  if (i1 <= i0 || p1 <= p0 || (line != 1 && depth != 1)) return f;
  f.at = (const char*)data + (i0 * line + p0 * depth) * size;
  bool along = depth == 1;
  f.run = (along ? p1 - p0 : i1 - i0) * size;
  f.step = (along ? line : depth) * size;
  f.left = along ? i1 - i0 : p1 - p0;
  int64_t lines = f.left * ((f.run + kLine - 1) / kLine);
  f.share = (lines + fetches - 1) / fetches;
  f.wait = fetches - (lines + f.share - 1) / f.share;
  return f;
}

struct Update {
  float alpha;
  bool accumulate;
  const float* bias;  // at this panel's first column, or null
};

// One rounding for alpha * sum + (what was there + bias), everywhere the same.
VEC_INLINE vf updated(vf sum, const float* c, const Update& u, int64_t column) {
  vf base = u.accumulate ? load(c) : splat(0.0f);
  if (u.bias) base += load(u.bias + column);
  return fused(sum, splat(u.alpha), base);
}

// c[MR][NV*kWidth] (+)= alpha * a b (+ bias); a packed [depth][MR], b rows bStep apart.
template <int MR, int NV>
static void micro(int64_t depth, const float* a, const float* b, int64_t bStep, float* c,
                  int64_t cStep, const Update& u, Ahead* ahead) {
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
    __builtin_prefetch(c + i * cStep, 1, 3);
    __builtin_prefetch(c + i * cStep + NV * kWidth - 1, 1, 3);
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = splat(0.0f);
  }
  const int64_t panel = depth * MR;
  for (int64_t p = 0; p < depth;) {
    int64_t end = depth - p < kFetchSteps ? depth : p + kFetchSteps;
    fetch(ahead);
    for (; p < end; p++) {
      vf bv[NV];
      __builtin_prefetch(a + panel, 0, 2);  // the next panel may lie in a farther cache
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) bv[j] = load(b + j * kWidth);
      multiplyStep(a, bv, acc);
      a += MR;
      b += bStep;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      float* at = c + i * cStep + j * kWidth;
      store(at, updated(acc[i][j], at, u, j * kWidth));
    }
  }
}

typedef void (*MicroKernel)(int64_t, const float*, const float*, int64_t, float*, int64_t,
                            const Update&, Ahead*);

// Height of the block used for a panel of `rows` rows: whole panels, or the next of 8, 4, 2, 1.
VEC_INLINE int blockRows(int64_t rows) {
  if (rows > 8 || rows >= kRows) return kRows;
  if (rows > 4) return kRows < 8 ? kRows : 8;
  return rows > 2 ? 4 : (int)rows;
}

// Width of the block used for a panel of `cols` columns: the next of kCols, kCols/2 and kWidth.
VEC_INLINE int64_t blockCols(int64_t cols) {
  return kVecs > 1 && cols <= kWidth ? kWidth : kVecs > 2 && cols <= kCols / 2 ? kCols / 2 : kCols;
}

// Rows and columns with the last panel filled up, as they are packed.
static int64_t paddedRows(int64_t m) {
  int64_t rest = m % kRows;
  return m - rest + (rest ? blockRows(rest) : 0);
}
static int64_t paddedCols(int64_t n) {
  int64_t rest = n % kCols;
  return n - rest + (rest ? blockCols(rest) : 0);
}

// Elements of K in one block.
static int64_t depthOf(int64_t k) {
  constexpr int64_t kMost = kDepth * kPair, kUnit = 8 * kPair;
  int64_t blocks = (k + kMost - 1) / kMost;
  return blocks ? ((k + blocks - 1) / blocks + kUnit - 1) / kUnit * kUnit : kUnit;
}

template <int NV>
static MicroKernel pick(int height) {
  switch (height) {
    case 1:
      return micro<1, NV>;
    case 2:
      return micro<2, NV>;
    case 4:
      return micro<4, NV>;
    case 8:
      return micro<8, NV>;
    default:
      return micro<kRows, NV>;
  }
}

// A block that sticks out of C is computed whole in a buffer by `kernel(block, step, update)`.
template <class F>
VEC_INLINE void edge(int height, int64_t rows, int64_t cols, float* c, int64_t cStep,
                     const Update& u, F kernel) {
  alignas(64) float block[(kRows > 8 ? kRows : 8) * kCols];
  alignas(64) float bias[kCols];
  Update v = u;
  for (int64_t i = 0; i < height; i++) {
    for (int64_t j = 0; j < kCols; j++) {
      block[i * kCols + j] = u.accumulate && i < rows && j < cols ? c[i * cStep + j] : 0.0f;
    }
  }
  if (u.bias) {
    for (int64_t j = 0; j < kCols; j++) bias[j] = j < cols ? u.bias[j] : 0.0f;
    v.bias = bias;
  }
  kernel(block, (int64_t)kCols, v);
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < cols; j++) c[i * cStep + j] = block[i * kCols + j];
  }
}

static Update updateOf(const GemmTask* t, int64_t p0, int64_t column) {
  return {t->alpha, p0 > 0 || t->accumulate, t->bias && p0 == 0 ? t->bias + column : nullptr};
}

// One block of K: rows [m0,m1) by columns [n0,n1), both packed from there on.
static void sweep(const GemmTask* t, int64_t m0, int64_t m1, int64_t n0, int64_t n1, int64_t p0,
                  int64_t steps, const float* aPack, const float* bPack, Ahead* ahead) {
  for (int64_t j = n0; j < n1; j += kCols) {
    int64_t cols = n1 - j < kCols ? n1 - j : kCols, panel = blockCols(cols);
    const float* b = bPack + (j - n0) * steps;
    Update u = updateOf(t, p0, j);
    for (int64_t i = m0; i < m1; i += kRows) {
      int64_t rows = m1 - i < kRows ? m1 - i : kRows;
      int height = blockRows(rows);
      MicroKernel kernel = panel == kCols    ? pick<kVecs>(height)
                           : panel == kWidth ? pick<1>(height)
                                             : pick<kVecs / 2>(height);
      float* c = t->c + i * t->cRow + j;
      const float* a = aPack + (i - m0) * steps;
      if (rows == height && cols == panel) {
        kernel(steps, a, b, panel, c, t->cRow, u, ahead);
      } else {
        edge(height, rows, cols, c, t->cRow, u,
             [&](float* block, int64_t blockStep, const Update& v) {
               kernel(steps, a, b, panel, block, blockStep, v, ahead);
             });
      }
    }
  }
}

static void packRows(const GemmTask* t, int64_t m0, int64_t m1, int64_t p0, int64_t elements,
                     float* to) {
  pack(t->a, t->aType, m0 * t->aRow + p0 * t->aCol, t->aRow, t->aCol, m1 - m0, kRows,
       blockRows((m1 - m0) % kRows), elements, to);
}

static void packCols(const GemmTask* t, int64_t n0, int64_t n1, int64_t p0, int64_t elements,
                     float* to) {
  pack(t->b, t->bType, n0 * t->bCol + p0 * t->bRow, t->bCol, t->bRow, n1 - n0, kCols,
       blockCols((n1 - n0) % kCols), elements, to);
}

// Fetches of the micro-kernel for a block of a part of C.
VEC_INLINE int64_t fetchesOf(int64_t m, int64_t n, int64_t steps) {
  return ((m + kRows - 1) / kRows) * ((n + kCols - 1) / kCols) *
         ((steps + kFetchSteps - 1) / kFetchSteps);
}

// What is packed after lines [from, to) and `elements` of K from p0: the same lines further on in
// K, or the next `most` lines of this part, which ends at `end`, or the next part's first ones.
static Ahead afterBlock(const GemmTask* t, bool rows, int64_t from, int64_t to, int64_t end,
                        int64_t most, int64_t p0, int64_t elements, int64_t fetches) {
  int64_t step = depthOf(t->k), q0 = p0 + elements;
  if (q0 >= t->k1) {
    q0 = to < end ? t->k0 : t->nextK;
    from = to < end ? to : t->next0;
    to = to < end ? end : t->next1;
    if (to - from > most) to = from + most;
  }
  int64_t q1 = q0 + step < t->k ? q0 + step : t->k;
  return rows ? aheadOf(t->a, t->aType, t->aRow, t->aCol, from, to, q0, q1, fetches)
              : aheadOf(t->b, t->bType, t->bCol, t->bRow, from, to, q0, q1, fetches);
}

// Columns in blocks that are packed here, each for all rows.
static void byColumns(const GemmTask* t, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                      float* scratch) {
  float *aHere = scratch, *bHere = scratch + kRowBlock * kDepth;
  int64_t step = depthOf(t->k), height = paddedRows(t->m);
  for (int64_t nb = n0; nb < n1; nb += kColBlock) {
    int64_t ne = nb + kColBlock < n1 ? nb + kColBlock : n1;
    for (int64_t p0 = t->k0; p0 < t->k1; p0 += step) {
      int64_t elements = t->k1 - p0 < step ? t->k1 - p0 : step, steps = stepsOf(elements);
      packCols(t, nb, ne, p0, elements, bHere);
      Ahead ahead = afterBlock(t, false, nb, ne, n1, kColBlock, p0, elements,
                               fetchesOf(m1 - m0, ne - nb, steps));
      for (int64_t mb = m0; mb < m1; mb += kRowBlock) {
        int64_t me = mb + kRowBlock < m1 ? mb + kRowBlock : m1;
        const float* a = aHere;
        if (t->aPack) {
          a = t->aPack + (p0 - t->k0) / kPair * height + mb * steps;
        } else {
          packRows(t, mb, me, p0, elements, aHere);
        }
        sweep(t, mb, me, nb, ne, p0, steps, a, bHere, &ahead);
      }
    }
  }
}

// The first panel of columns [n0, n1), a stretch of K from p0.
static Ahead panelOf(const GemmTask* t, int64_t n0, int64_t n1, int64_t p0, int64_t stretch,
                     int64_t fetches) {
  int64_t end = n0 + kCols < n1 ? n0 + kCols : n1;
  int64_t p1 = p0 + stretch < t->k1 ? p0 + stretch : t->k1;
  return aheadOf(t->b, t->bType, t->bCol, t->bRow, n0, end, p0, p1, fetches);
}

// The same for few rows, packed already: one panel at a time over a long stretch of K, so that B
// is read in long runs; the next stretch, or panel, is asked for while this one is multiplied.
static void byPanels(const GemmTask* t, int64_t n0, int64_t n1, float* scratch) {
  int64_t step = depthOf(t->k), height = paddedRows(t->m);
  int64_t stretch = kScratch / (kCols * stepsOf(step)) * step;
  for (int64_t nb = n0; nb < n1; nb += kCols) {
    int64_t ne = nb + kCols < n1 ? nb + kCols : n1, width = blockCols(ne - nb);
    for (int64_t q0 = t->k0; q0 < t->k1; q0 += stretch) {
      int64_t q1 = q0 + stretch < t->k1 ? q0 + stretch : t->k1;
      packCols(t, nb, ne, q0, q1 - q0, scratch);
      int64_t fetches = fetchesOf(t->m, ne - nb, stepsOf(q1 - q0));
      Ahead ahead = q1 < t->k1 ? panelOf(t, nb, ne, q1, stretch, fetches)
                    : ne < n1  ? panelOf(t, ne, n1, t->k0, stretch, fetches)
                               : panelOf(t, t->next0, t->next1, t->k0, stretch, fetches);
      for (int64_t p0 = q0; p0 < q1; p0 += step) {
        int64_t steps = stepsOf(q1 - p0 < step ? q1 - p0 : step);
        sweep(t, 0, t->m, nb, ne, p0, steps, t->aPack + (p0 - t->k0) / kPair * height,
              scratch + (p0 - q0) / kPair * width, &ahead);
      }
    }
  }
}

// Rows in blocks that are packed here, each for all columns, which are packed already.
static void byRows(const GemmTask* t, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                   float* scratch) {
  int64_t step = depthOf(t->k), width = paddedCols(t->n);
  for (int64_t mb = m0; mb < m1; mb += kRowBlock) {
    int64_t me = mb + kRowBlock < m1 ? mb + kRowBlock : m1;
    for (int64_t p0 = t->k0; p0 < t->k1; p0 += step) {
      int64_t elements = t->k1 - p0 < step ? t->k1 - p0 : step, steps = stepsOf(elements);
      packRows(t, mb, me, p0, elements, scratch);
      Ahead ahead = afterBlock(t, true, mb, me, m1, kRowBlock, p0, elements,
                               fetchesOf(me - mb, n1 - n0, steps));
      sweep(t, mb, me, n0, n1, p0, steps, scratch,
            t->bPack + (p0 - t->k0) / kPair * width + n0 * steps, &ahead);
    }
  }
}

static void gemm(const GemmTask* t, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                 float* scratch) {
  if (t->bPack) {
    byRows(t, m0, m1, n0, n1, scratch);
  } else if (t->aPack && t->m <= 2 * kRows) {
    byPanels(t, n0, n1, scratch);
  } else {
    byColumns(t, m0, m1, n0, n1, scratch);
  }
}

#include "few.h"

#ifdef GEMM_PAIRS
#define GEMM_NARROW nullptr
#else
#include "narrow.h"
#define GEMM_NARROW narrow
#endif
#define GEMM_KERNELS                                                                             \
  {                                                                                              \
    kRows, kCols, kRowBlock, kColBlock, kScratch, kPair, kFewRows, kStreamCols, kTurnedRows,     \
        kNarrowCols, depthOf, paddedRows, paddedCols, packRows, packCols, gemm, few, GEMM_NARROW \
  }

}  // namespace

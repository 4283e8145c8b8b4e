// The packed, register-blocked product. Panels of kRows rows of A and kCols = kVecs*kWidth columns
// of B; K in blocks of at most kDepth whose number depends on K only.

namespace {

constexpr int kCols = kVecs * kWidth;
constexpr int64_t kDepth = 256;
constexpr int64_t kRowBlock = kRows * 12;
constexpr int64_t kColBlock = 512;
constexpr int64_t kScratch = kRowBlock * kDepth + kColBlock * kDepth + 64;

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

// One panel whose lines run along the depth: dst[p * width + i] = src[i * step + p] for i < count,
// zeros for count <= i < width.
template <class T>
static void packLines(const T* src, int64_t step, int64_t count, int64_t width, int64_t depth,
                      float* dst) {
  for (int64_t g = 0; g < width; g += kWidth) {
    int64_t filled = count - g < kWidth ? (count - g > 0 ? count - g : 0) : kWidth;
    int64_t kept = width - g < kWidth ? width - g : kWidth;
    for (int64_t p = 0; p < depth; p += kWidth) {
      int64_t deep = depth - p < kWidth ? depth - p : kWidth;
      vf v[kWidth];
      const T* from = src + g * step + p;
      if (deep == kWidth && filled == kWidth) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; i++) v[i] = loadAs(from + i * step);
      } else {
        for (int i = 0; i < kWidth; i++) {
          v[i] = i >= filled      ? splat(0.0f)
                 : deep == kWidth ? loadAs(from + i * step)
                                  : partAs(from + i * step, deep);
        }
      }
      transpose(v);
      float* to = dst + p * width + g;
      if (kept == kWidth && deep == kWidth) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; i++) store(to + i * width, v[i]);
      } else if (kept == kWidth) {
        for (int64_t i = 0; i < deep; i++) store(to + i * width, v[i]);
      } else {
        for (int64_t i = 0; i < deep; i++) storePart(to + i * width, v[i], kept);
      }
    }
  }
}

// `rows` steps of the depth of one panel: to[p * width + i] = from[i * step + p * depthStep].
template <class T>
VEC_INLINE void packStrip(const T* from, int64_t step, int64_t depthStep, int64_t have,
                          int64_t width, int64_t rows, float* to) {
  for (int64_t p = 0; p < rows; p++, from += depthStep, to += width) {
    for (int64_t g = 0; g < width; g += kWidth) {
      int64_t filled = have - g;
      vf v = {};
      if (step != 1) {
        for (int64_t i = 0; i < kWidth && i < filled; i++)
          v[i] = partAs(from + (g + i) * step, 1)[0];
      } else if (filled >= kWidth) {
        v = loadAs(from + g);
      } else if (filled > 0) {
        v = partAs(from + g, filled);
      }
      if (width - g >= kWidth) {
        store(to + g, v);
      } else {
        storePart(to + g, v, width - g);
      }
    }
  }
}

// All panels at once where a line runs across them, a few lines at a time, so that memory is read
// almost in order; the last panel may be narrower. Steps other than 1 are picked one by one.
template <class T>
static void packAcross(const T* src, int64_t step, int64_t depthStep, int64_t count, int64_t panel,
                       int64_t lastPanel, int64_t depth, float* dst) {
  constexpr int64_t kLines = 8;
  for (int64_t p = 0; p < depth; p += kLines) {
    int64_t rows = depth - p < kLines ? depth - p : kLines;
    for (int64_t at = 0; at < count; at += panel) {
      int64_t have = count - at < panel ? count - at : panel;
      int64_t width = have < panel ? lastPanel : panel;
      packStrip(src + at * step + p * depthStep, step, depthStep, have, width, rows,
                dst + at * depth + p * width);
    }
  }
}

// Rows (or columns) [0, count) as panels of `panel`, the last one of `lastPanel` if it is not full.
template <class T>
static void packPanels(const T* src, int64_t step, int64_t depthStep, int64_t count, int64_t panel,
                       int64_t lastPanel, int64_t depth, float* dst) {
  if (depthStep != 1) return packAcross(src, step, depthStep, count, panel, lastPanel, depth, dst);
  for (int64_t at = 0; at < count; at += panel) {
    int64_t have = count - at < panel ? count - at : panel;
    packLines(src + at * step, step, have, have < panel ? lastPanel : panel, depth,
              dst + at * depth);
  }
}

static void pack(const void* src, int type, int64_t offset, int64_t step, int64_t depthStep,
                 int64_t count, int64_t panel, int64_t lastPanel, int64_t depth, float* dst) {
  if (type == 1) {
    packPanels((const Half*)src + offset, step, depthStep, count, panel, lastPanel, depth, dst);
  } else if (type == 2) {
    packPanels((const Brain*)src + offset, step, depthStep, count, panel, lastPanel, depth, dst);
  } else {
    packPanels((const float*)src + offset, step, depthStep, count, panel, lastPanel, depth, dst);
  }
}

struct Update {
  float alpha;
  bool accumulate;
  const float* bias;  // at this panel's first column, or null
};

// c[MR][NV*kWidth] (+)= alpha * a b (+ bias); a packed [depth][MR], b rows bStep apart.
template <int MR, int NV>
static void micro(int64_t depth, const float* a, const float* b, int64_t bStep, float* c,
                  int64_t cStep, const Update& u) {
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = splat(0.0f);
  }
  for (int64_t p = 0; p < depth; p++) {
    vf bv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) bv[j] = load(b + j * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      vf av = splat(a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] += av * bv[j];
    }
    a += MR;
    b += bStep;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      float* at = c + i * cStep + j * kWidth;
      vf base = u.accumulate ? load(at) : splat(0.0f);
      if (u.bias) base += load(u.bias + j * kWidth);
      store(at, acc[i][j] * u.alpha + base);
    }
  }
}

typedef void (*MicroKernel)(int64_t, const float*, const float*, int64_t, float*, int64_t,
                            const Update&);

// Height of the block used for a panel of `rows` rows: whole panels, or the next of 8, 4, 2, 1.
VEC_INLINE int blockRows(int64_t rows) {
  if (rows > 8 || rows >= kRows) return kRows;
  if (rows > 4) return kRows < 8 ? kRows : 8;
  return rows > 2 ? 4 : (int)rows;
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

// A block that sticks out of C is computed whole in a buffer by the same kernel.
static void edge(MicroKernel kernel, int height, int64_t rows, int64_t cols, int64_t depth,
                 const float* a, const float* b, int64_t bStep, float* c, int64_t cStep,
                 const Update& u) {
  alignas(64) float block[kRows * kCols];
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
  kernel(depth, a, b, bStep, block, kCols, v);
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < cols; j++) c[i * cStep + j] = block[i * kCols + j];
  }
}

// One depth block: rows [m0,m1) by columns [n0,n1), B packed already (or read in place).
static void sweep(const GemmTask* t, int64_t m0, int64_t m1, int64_t n0, int64_t n1, int64_t p0,
                  int64_t depth, float* aPack, float* bPack, bool bInPlace) {
  Update u = {t->alpha, p0 > 0 || t->accumulate, nullptr};
  for (int64_t mb = m0; mb < m1; mb += kRowBlock) {
    int64_t me = mb + kRowBlock < m1 ? mb + kRowBlock : m1;
    pack(t->a, t->aType, mb * t->aRow + p0 * t->aCol, t->aRow, t->aCol, me - mb, kRows,
         blockRows((me - mb) % kRows), depth, aPack);
    for (int64_t j = n0; j < n1; j += kCols) {
      int64_t cols = n1 - j < kCols ? n1 - j : kCols;
      bool narrow = kVecs > 1 && cols <= kWidth;
      int64_t panel = narrow ? kWidth : kCols;
      const float* b = bPack + (j - n0) * depth;
      int64_t bStep = panel;
      if (bInPlace && cols == panel) {
        b = (const float*)t->b + p0 * t->bRow + j;
        bStep = t->bRow;
      }
      u.bias = t->bias && p0 == 0 ? t->bias + j : nullptr;
      for (int64_t i = mb; i < me; i += kRows) {
        int64_t rows = me - i < kRows ? me - i : kRows;
        int height = blockRows(rows);
        MicroKernel kernel = narrow ? pick<1>(height) : pick<kVecs>(height);
        float* c = t->c + i * t->cRow + j;
        const float* a = aPack + (i - mb) * depth;
        if (rows == height && cols == panel) {
          kernel(depth, a, b, bStep, c, t->cRow, u);
        } else {
          edge(kernel, height, rows, cols, depth, a, b, bStep, c, t->cRow, u);
        }
      }
    }
  }
}

static void gemm(const GemmTask* t, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                 float* scratch) {
  float* aPack = scratch;
  float* bPack = scratch + kRowBlock * kDepth;
  int64_t blocks = (t->k + kDepth - 1) / kDepth;
  int64_t step = blocks ? ((t->k + blocks - 1) / blocks + 7) / 8 * 8 : 0;
  // Few rows meet each panel of B once, so it is read where it lies.
  bool inPlace = m1 - m0 <= kRows && t->bCol == 1 && t->bType == 0;
  for (int64_t nb = n0; nb < n1; nb += kColBlock) {
    int64_t ne = nb + kColBlock < n1 ? nb + kColBlock : n1;
    for (int64_t p0 = 0; p0 < t->k; p0 += step) {
      int64_t depth = t->k - p0 < step ? t->k - p0 : step;
      int64_t rest = (ne - nb) % kCols, from = inPlace ? ne - rest : nb;
      bool narrow = kVecs > 1 && rest <= kWidth;
      if (inPlace && rest == kWidth) from = ne;
      if (from < ne) {
        pack(t->b, t->bType, p0 * t->bRow + from * t->bCol, t->bCol, t->bRow, ne - from, kCols,
             narrow ? kWidth : kCols, depth, bPack + (from - nb) * depth);
      }
      sweep(t, m0, m1, nb, ne, p0, depth, aPack, bPack, inPlace);
    }
  }
}

}  // namespace

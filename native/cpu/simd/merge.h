// y = w + p q with p and q of a small rank: w is read once, its sum with the product rounded once
// and written once, past the caches where y is too large for them.

namespace {

VEC_INLINE vh brainOf(vf x) {
  vu u = (vu)x;
  vu nan = (vu)(vi)((u & 0x7fffffffu) > 0x7f800000u);
  vu near = (u + 0x7fffu + (u >> 16 & 1)) >> 16;
  return __builtin_convertvector((near & ~nan) | ((u >> 16 | 0x40u) & nan), vh);
}
VEC_INLINE vh halfOf(vf x) {
#ifdef VEC_HALF
  return narrowHalf(x);
#else
  vh v = {};
  for (int i = 0; i < kWidth; i++) v[i] = narrowHalf1(x[i]);
  return v;
#endif
}

#ifdef VEC_STREAM
constexpr bool kStreams = true;
#else
constexpr bool kStreams = false;
VEC_INLINE void stream(float* p, vf v) { store(p, v); }
VEC_INLINE void stream(uint16_t* p, vh v) { *(vh_any*)p = v; }
#endif

// How put() stores, and the bits of the largest magnitude of each lane; those of a NaN are larger
// than any number's.
struct Put {
  bool past;  // whether past the caches
  vi largest;
};

VEC_INLINE void look(vf v, Put* how) {
  vi magnitude = (vi)v & 0x7fffffff;
  how->largest = magnitude > how->largest ? magnitude : how->largest;
}

// The bits of the least f32 that rounds to no finite number.
constexpr int32_t limitOf(const float*) { return 0x7f800000; }
constexpr int32_t limitOf(const Half*) { return 0x477ff000; }  // 65520
constexpr int32_t limitOf(const Brain*) { return 0x7f7f8000; }

// Rounds and stores a vector, or its first n elements.
VEC_INLINE void put(float* to, vf v, int64_t n, Put* how) {
  look(v, how);
  if (n < kWidth) {
    storePart(to, v, n);
  } else if (how->past) {
    stream(to, v);
  } else {
    store(to, v);
  }
}
VEC_INLINE void putBits(uint16_t* to, vh v, int64_t n, const Put* how) {
  if (n < kWidth) {
    for (int64_t i = 0; i < n; i++) to[i] = v[i];
  } else if (how->past) {
    stream(to, v);
  } else {
    *(vh_any*)to = v;
  }
}
VEC_INLINE void put(Half* to, vf v, int64_t n, Put* how) {
  look(v, how);
  putBits(&to->bits, halfOf(v), n, how);
}
VEC_INLINE void put(Brain* to, vf v, int64_t n, Put* how) {
  look(v, how);
  putBits(&to->bits, brainOf(v), n, how);
}

// MR rows by NV vectors of y = w + p q, or by one vector's first n < kWidth elements.
template <int MR, int NV, class W, class Y>
VEC_INLINE void mergeBlock(const W* w, Y* y, int64_t step, int64_t n, const float* p, int64_t r,
                           const float* q, int64_t qStep, Put* how) {
  vf acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = splat(0.0f);
  }
  for (int64_t k = 0; k < r; k++) {
    vf qv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      const float* from = q + k * qStep + j * kWidth;
      qv[j] = n == kWidth ? load(from) : loadPart(from, n);
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
      vf pv = splat(p[i * r + k]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] += pv * qv[j];
    }
  }
  Put local = *how;
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) {
      const W* from = w + i * step + j * kWidth;
      vf base = n == kWidth ? loadAs(from) : partAs(from, n);
      put(y + i * step + j * kWidth, base + acc[i][j], n, &local);
    }
  }
  how->largest = local.largest;
}

template <int MR, class W, class Y>
static void mergeLines(const W* w, Y* y, int64_t step, int64_t cols, const float* p, int64_t r,
                       const float* q, int64_t qStep, Put* how) {
  int64_t j = 0;
  for (; j + 2 * kWidth <= cols; j += 2 * kWidth) {
    mergeBlock<MR, 2>(w + j, y + j, step, kWidth, p, r, q + j, qStep, how);
  }
  for (; j < cols; j += kWidth) {
    int64_t n = cols - j < kWidth ? cols - j : kWidth;
    mergeBlock<MR, 1>(w + j, y + j, step, n, p, r, q + j, qStep, how);
  }
}

template <class W, class Y>
static bool mergeAs(const RankMerge* m, int64_t rows) {
  constexpr int MR = kWidth == 16 ? 8 : 4;
  const W* w = (const W*)m->w;
  Y* y = (Y*)m->y;
  constexpr uint64_t kVector = kWidth * sizeof(Y);
  Put how = {kStreams && m->past && (uint64_t)y % kVector == 0 && m->step % kWidth == 0, {}};
  int64_t i = 0;
  for (; i + MR <= rows; i += MR) {
    mergeLines<MR>(w + i * m->step, y + i * m->step, m->step, m->cols, m->p + i * m->r, m->r, m->q,
                   m->qStep, &how);
  }
  for (; i < rows; i++) {
    mergeLines<1>(w + i * m->step, y + i * m->step, m->step, m->cols, m->p + i * m->r, m->r, m->q,
                  m->qStep, &how);
  }
#ifdef VEC_STREAM
  if (how.past) _mm_sfence();
#endif
  for (int j = 0; j < kWidth; j++) {
    if (how.largest[j] >= limitOf((const Y*)nullptr)) return false;
  }
  return true;
}

template <class W>
static bool mergeFrom(const RankMerge* m, int64_t rows) {
  if (m->yType == 1) return mergeAs<W, Half>(m, rows);
  if (m->yType == 2) return mergeAs<W, Brain>(m, rows);
  return mergeAs<W, float>(m, rows);
}

static bool rankMerge(const RankMerge* m, int64_t rows) {
  if (m->wType == 1) return mergeFrom<Half>(m, rows);
  if (m->wType == 2) return mergeFrom<Brain>(m, rows);
  return mergeFrom<float>(m, rows);
}

}  // namespace

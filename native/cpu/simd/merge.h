// y = w + p q with p and q of a small rank: w is read once, its sum with the product rounded once
// and written once, past the caches where y is too large for them.

namespace {

#ifdef VEC_STREAM
constexpr bool kStreams = true;
#else
constexpr bool kStreams = false;
VEC_INLINE void stream(float* p, vf v) { store(p, v); }
VEC_INLINE void stream(uint16_t* p, vhh v) { *(vhh_any*)p = v; }
#endif

// How results are stored, and the bits of the largest magnitude of each lane; those of a NaN are
// larger than any number's.
struct Put {
  bool past;  // whether past the caches
  vi largest;
};

VEC_INLINE void look(vf v, vi* largest) {
  vi magnitude = (vi)v & 0x7fffffff;
  *largest = magnitude > *largest ? magnitude : *largest;
}

// The bits of the least f32 that rounds to no finite number.
constexpr int32_t limitOf(const float*) { return 0x7f800000; }
constexpr int32_t limitOf(const Half*) { return 0x477ff000; }  // 65520
constexpr int32_t limitOf(const Brain*) { return 0x7f7f8000; }

VEC_INLINE vh narrowAs(const Half*, vf v) {
#ifdef VEC_HALF
  return narrowHalf(v);
#else
  vh h = {};
  for (int i = 0; i < kWidth; i++) h[i] = narrowHalf1(v[i]);
  return h;
#endif
}
VEC_INLINE vh narrowAs(const Brain*, vf v) { return narrowBrain(v); }

// Two vectors of w.
VEC_INLINE void loadTwo(const float* p, vf* a, vf* b) {
  *a = load(p);
  *b = load(p + kWidth);
}
VEC_INLINE void loadTwo(const Half* p, vf* a, vf* b) {
  *a = loadAs(p);
  *b = loadAs(p + kWidth);
}
VEC_INLINE void loadTwo(const Brain* p, vf* a, vf* b) { widenBrains(&p->bits, a, b); }

// Whether putTwo() without `nan` keeps every NaN.
template <class Y>
constexpr bool kKeepsNaN = true;
template <>
constexpr bool kKeepsNaN<Brain> = false;

// Rounds and stores two vectors; `nan` says whether there may be a NaN among them.
VEC_INLINE void putTwo(float* to, vf a, vf b, bool past, bool) {
  if (past) {
    stream(to, a);
    stream(to + kWidth, b);
  } else {
    store(to, a);
    store(to + kWidth, b);
  }
}
VEC_INLINE void putBits(uint16_t* to, vhh v, bool past) {
  if (past) {
    stream(to, v);
  } else {
    *(vhh_any*)to = v;
  }
}
VEC_INLINE void putTwo(Half* to, vf a, vf b, bool past, bool) {
  putBits(&to->bits, joined(narrowAs(to, a), narrowAs(to, b)), past);
}
VEC_INLINE void putTwo(Brain* to, vf a, vf b, bool past, bool nan) {
  putBits(&to->bits,
          nan ? upperHalves(exactBrain(a), exactBrain(b)) : upperHalves(nearBrain(a), nearBrain(b)),
          past);
}

VEC_INLINE void putPart(float* to, vf v, int64_t n) { storePart(to, v, n); }
template <class Y>
VEC_INLINE void putPart(Y* to, vf v, int64_t n) {
  vh h = narrowAs(to, v);
  for (int64_t i = 0; i < n; i++) to[i].bits = h[i];
}

// MR rows by two vectors of y = w + p q.
template <int MR, class W, class Y>
VEC_INLINE void mergeBlock(const W* w, Y* y, int64_t step, const float* p, int64_t r,
                           const float* q, int64_t qStep, Put* how) {
  vf acc[MR][2];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) {
    acc[i][0] = acc[i][1] = splat(0.0f);
  }
  for (int64_t k = 0; k < r; k++) {
    vf q0 = load(q + k * qStep), q1 = load(q + k * qStep + kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
      vf pv = splat(p[i * r + k]);
      acc[i][0] += pv * q0;
      acc[i][1] += pv * q1;
    }
  }
  vi largest = how->largest;
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) {
    vf a, b;
    loadTwo(w + i * step, &a, &b);
    acc[i][0] = a + acc[i][0];
    acc[i][1] = b + acc[i][1];
    look(acc[i][0], &largest);
    look(acc[i][1], &largest);
  }
  how->largest = largest;
  if (!kKeepsNaN<Y> && anyAbove(largest, 0x7f800000)) {
    for (int i = 0; i < MR; i++) putTwo(y + i * step, acc[i][0], acc[i][1], how->past, true);
    return;
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++) putTwo(y + i * step, acc[i][0], acc[i][1], how->past, false);
}

// MR rows by the first n columns of a vector.
template <int MR, class W, class Y>
static void mergePart(const W* w, Y* y, int64_t step, int64_t n, const float* p, int64_t r,
                      const float* q, int64_t qStep, Put* how) {
  for (int i = 0; i < MR; i++) {
    vf acc = splat(0.0f);
    for (int64_t k = 0; k < r; k++) acc += splat(p[i * r + k]) * loadPart(q + k * qStep, n);
    vf v = partAs(w + i * step, n) + acc;
    look(v, &how->largest);
    putPart(y + i * step, v, n);
  }
}

template <int MR, class W, class Y>
static void mergeLines(const W* w, Y* y, int64_t step, int64_t cols, const float* p, int64_t r,
                       const float* q, int64_t qStep, Put* how) {
  int64_t j = 0;
  for (; j + 2 * kWidth <= cols; j += 2 * kWidth) {
    mergeBlock<MR>(w + j, y + j, step, p, r, q + j, qStep, how);
  }
  while (j < cols) {
    int64_t n = cols - j < kWidth ? cols - j : kWidth;
    mergePart<MR>(w + j, y + j, step, n, p, r, q + j, qStep, how);
    j += n;
  }
}

template <class W, class Y>
static bool mergeAs(const RankMerge* m, int64_t rows) {
  constexpr int MR = kManyRegisters ? 8 : 4;
  const W* w = (const W*)m->w;
  Y* y = (Y*)m->y;
  constexpr int64_t kBytes = kWidth * 4;  // of a store past the caches
  bool whole = (uint64_t)y % kBytes == 0 && m->step * (int64_t)sizeof(Y) % kBytes == 0;
  Put how = {kStreams && m->past && whole, {}};
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
  return !anyAbove(how.largest, limitOf((const Y*)nullptr) - 1);
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

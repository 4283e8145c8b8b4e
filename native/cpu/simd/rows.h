// Row primitives: sums, the pieces of norms, losses and optimizers, dropout, conversions.

namespace {

// Philox-4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
constexpr uint32_t kPhiloxA = 0xD2511F53u, kPhiloxB = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyA = 0x9E3779B9u, kPhiloxKeyB = 0xBB67AE85u;

float rMax(const float* x, int64_t n) {
  const float lowest = -__builtin_inff();
  vf best = splat(lowest), other = best;
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    best = larger(load(x + i), best);
    other = larger(load(x + i + kWidth), other);
  }
  best = larger(best, other);
  float m = lowest;
  for (int j = 0; j < kWidth; j++) m = best[j] > m ? best[j] : m;
  for (; i < n; i++) m = x[i] > m ? x[i] : m;
  return m;
}
// The first place of the largest element, or of the first NaN; n > 0.
int64_t rArgMax(const float* x, int64_t n) {
  int64_t i = 0;
  vi nan = {};
  vf best = splat(-__builtin_inff());
  for (; i + kWidth <= n; i += kWidth) {
    vf v = load(x + i);
    nan |= v != v;
    best = larger(v, best);
  }
  float top = -__builtin_inff();
  bool any = false;
  for (int j = 0; j < kWidth; j++) {
    top = best[j] > top ? best[j] : top;
    any |= nan[j] != 0;
  }
  for (; i < n; i++) {
    top = x[i] > top ? x[i] : top;
    any |= x[i] != x[i];
  }
  for (i = 0; i + kWidth <= n; i += kWidth) {
    vf v = load(x + i);
    vi found = any ? (vi)(v != v) : (vi)(v == top);
    if (anyAbove(-found, 0)) break;
  }
  for (; i < n; i++) {
    if (any ? x[i] != x[i] : x[i] == top) return i;
  }
  return 0;
}
double rSum(const float* x, int64_t n) {
  return sumWide(
      n, [=](int64_t i) { return wide(x + i); }, [=](int64_t i) { return (double)x[i]; });
}
double rSumSquares(const float* x, int64_t n) {
  return sumWide(
      n,
      [=](int64_t i) {
        vd v = wide(x + i);
        return v * v;
      },
      [=](int64_t i) { return (double)x[i] * x[i]; });
}
// The sum and the sum of squares in one pass.
void rMoments(const float* x, int64_t n, double* sums) {
  const int h = kWidth / 2;
  vd s[4] = {}, q[4] = {};
  int64_t i = 0;
  for (; i + 4 * h <= n; i += 4 * h) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      vd v = wide(x + i + j * h);
      s[j] += v;
      q[j] += v * v;
    }
  }
  for (; i + h <= n; i += h) {
    vd v = wide(x + i);
    s[0] += v;
    q[0] += v * v;
  }
  sums[0] = total((s[0] + s[1]) + (s[2] + s[3]));
  sums[1] = total((q[0] + q[1]) + (q[2] + q[3]));
  for (; i < n; i++) {
    sums[0] += x[i];
    sums[1] += (double)x[i] * x[i];
  }
}
// Sums of a b and of a b c in one pass.
void rDots(const float* a, const float* b, const float* c, int64_t n, double* sums) {
  const int h = kWidth / 2;
  vd s[2] = {}, q[2] = {};
  int64_t i = 0;
  for (; i + 2 * h <= n; i += 2 * h) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      vd v = wide(a + i + j * h) * wide(b + i + j * h);
      s[j] += v;
      q[j] += v * wide(c + i + j * h);
    }
  }
  sums[0] = total(s[0] + s[1]);
  sums[1] = total(q[0] + q[1]);
  for (; i < n; i++) {
    double v = (double)a[i] * b[i];
    sums[0] += v;
    sums[1] += v * c[i];
  }
}
double rDot(const float* a, const float* b, int64_t n) {
  return sumWide(
      n, [=](int64_t i) { return wide(a + i) * wide(b + i); },
      [=](int64_t i) { return (double)a[i] * b[i]; });
}
double rDot3(const float* a, const float* b, const float* c, int64_t n) {
  return sumWide(
      n, [=](int64_t i) { return wide(a + i) * wide(b + i) * wide(c + i); },
      [=](int64_t i) { return (double)a[i] * b[i] * c[i]; });
}

// Lanes are added in f32 for up to 256 steps, then in doubles.
double rExpSum(const float* x, float scale, float shift, float* y, int64_t n) {
  double sum = 0;
  int64_t i = 0;
  while (i < n) {
    int64_t end = n - i > 256 * kWidth ? i + 256 * kWidth : n;
    vf acc = {};
    for (; i + kWidth <= end; i += kWidth) {
      vf e = vexp(load(x + i) * scale - shift);
      if (y) store(y + i, e);
      acc += e;
    }
    if (i < end) {
      int64_t r = end - i;
      vf e = vexp(loadPart(x + i, r) * scale - shift);
      if (y) storePart(y + i, e, r);
      acc += blend(lanes() < (int32_t)r, e, splat(0.0f));
      i = end;
    }
    for (int j = 0; j < kWidth; j++) sum += acc[j];
  }
  return sum;
}

void rScaleMul(const float* x, float s, const float* w, float* y, int64_t n) {
  map2(x, w, y, n, [=](vf a, vf b) { return a * s * b; });
}
void rAxpy(float s, const float* x, float* y, int64_t n) {
  map2(x, y, y, n, [=](vf a, vf b) { return a * s + b; });
}
void rNormGrad(const float* w, const float* d, float s, const float* x, float t, float u, float* y,
               int64_t n) {
  map3(w, d, x, y, n, [=](vf a, vf b, vf c) { return a * b * s + (c * t + u); });
}
// The sums of `rows` rows, `step` elements apart, for n columns: acc += x.
void rAddTo(const float* x, int64_t rows, int64_t step, double* acc, int64_t n) {
  const int h = kWidth / 2, some = 8;
  int64_t i = 0;
  for (; i + some * h <= n; i += some * h) {
    vd sum[some];
#pragma GCC unroll 8
    for (int j = 0; j < some; j++) sum[j] = *(const vd_any*)(acc + i + j * h);
    for (int64_t r = 0; r < rows; r++) {
#pragma GCC unroll 8
      for (int j = 0; j < some; j++) sum[j] += wide(x + r * step + i + j * h);
    }
#pragma GCC unroll 8
    for (int j = 0; j < some; j++) *(vd_any*)(acc + i + j * h) = sum[j];
  }
  for (; i < n; i++) {
    for (int64_t r = 0; r < rows; r++) acc[i] += x[r * step + i];
  }
}
// acc += d * (s * (x - shift)) for n columns of `rows` rows, `step` elements apart, each with a
// shift and an s, which stand side by side.
void rMulAddTo(const float* d, const float* x, const float* stats, int64_t rows, int64_t step,
               double* acc, int64_t n) {
  const int h = kWidth / 2, some = 8;
  int64_t i = 0;
  for (; i + some * h <= n; i += some * h) {
    vd sum[some];
#pragma GCC unroll 8
    for (int j = 0; j < some; j++) sum[j] = *(const vd_any*)(acc + i + j * h);
    for (int64_t r = 0; r < rows; r++) {
      double shift = stats[2 * r], s = stats[2 * r + 1];
      const float *dr = d + r * step + i, *xr = x + r * step + i;
#pragma GCC unroll 8
      for (int j = 0; j < some; j++) sum[j] += wide(dr + j * h) * ((wide(xr + j * h) - shift) * s);
    }
#pragma GCC unroll 8
    for (int j = 0; j < some; j++) *(vd_any*)(acc + i + j * h) = sum[j];
  }
  for (; i < n; i++) {
    for (int64_t r = 0; r < rows; r++) {
      double shift = stats[2 * r], s = stats[2 * r + 1];
      acc[i] += (double)d[r * step + i] * (((double)x[r * step + i] - shift) * s);
    }
  }
}
void rNormalize(const float* x, float shift, float s, const float* w, const float* b, float* y,
                int64_t n) {
  map3(x, w, b, y, n, [=](vf a, vf c, vf e) { return (a - shift) * s * c + e; });
}
void rSoftmaxGrad(const float* y, const float* dy, float dot, float* dx, int64_t n) {
  map2(y, dy, dx, n, [=](vf a, vf d) { return a * (d - dot); });
}
void rLogSoftmaxGrad(const float* y, const float* dy, float sum, float* dx, int64_t n) {
  map2(y, dy, dx, n, [=](vf a, vf d) { return d - vexp(a) * sum; });
}

void rRotate(const float* x1, const float* x2, const float* c, const float* s, float* y1, float* y2,
             int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) {
    int64_t r = n - i;
    if (r >= kWidth) {
      vf a = load(x1 + i), b = load(x2 + i), cs = load(c + i), sn = load(s + i);
      store(y1 + i, a * cs - b * sn);
      store(y2 + i, b * cs + a * sn);
    } else {
      vf a = loadPart(x1 + i, r), b = loadPart(x2 + i, r), cs = loadPart(c + i, r),
         sn = loadPart(s + i, r);
      storePart(y1 + i, a * cs - b * sn, r);
      storePart(y2 + i, b * cs + a * sn, r);
    }
  }
}

void rAdamW(const float* g, float* p, float* m, float* v, const AdamWStep* o, int64_t n) {
  AdamWStep k = *o;
  for (int64_t i = 0; i < n; i += kWidth) {
    int64_t r = n - i;
    bool whole = r >= kWidth;
    vf gv = (whole ? load(g + i) : loadPart(g + i, r)) * k.gradScale;
    vf pv = whole ? load(p + i) : loadPart(p + i, r);
    vf mv = whole ? load(m + i) : loadPart(m + i, r);
    vf vv = whole ? load(v + i) : loadPart(v + i, r);
    mv = mv * k.beta1 + gv * k.oneMinusBeta1;
    vv = vv * k.beta2 + gv * gv * k.oneMinusBeta2;
    pv = pv * k.decay - k.stepSize * mv / (root(vv) * k.rootCorrection + k.eps);
    if (whole) {
      store(p + i, pv);
      store(m + i, mv);
      store(v + i, vv);
    } else {
      storePart(p + i, pv, r);
      storePart(m + i, mv, r);
      storePart(v + i, vv, r);
    }
  }
}

#ifndef VEC_WIDE
typedef uint64_t vl __attribute__((vector_size(kWidth * 4)));

// Low and high words of the lanes' products with m; lanes lie low word first in 64-bit pairs.
VEC_INLINE vu multiplyWide(vu a, uint32_t m, vu* low) {
  vl even = ((vl)a & 0xffffffffu) * (uint64_t)m;
  vl odd = ((vl)a >> 32) * (uint64_t)m;
  *low = (vu)((even & 0xffffffffu) | (odd << 32));
  return (vu)((even >> 32) | (odd & ~(uint64_t)0xffffffffu));
}
#endif

// Four words of each of kWidth counters from `block` on, as they follow one another.
VEC_INLINE void philox(uint64_t block, const DropoutKey* key, vu* words) {
  vu low = (vu)lanes() + (uint32_t)block;
  vu c0 = low, c1 = (vu){} + (uint32_t)(block >> 32), c2 = (vu){} + key->stream,
     c3 = (vu){} + key->step;
  c1 -= (vu)(low < (vu)lanes());  // where the low half came to its end
  uint32_t k0 = key->k0, k1 = key->k1;
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
    vu lowA, lowB, highA = multiplyWide(c0, kPhiloxA, &lowA),
                   highB = multiplyWide(c2, kPhiloxB, &lowB);
    c0 = highB ^ c1 ^ k0;
    c2 = highA ^ c3 ^ k1;
    c1 = lowB;
    c3 = lowA;
    k0 += kPhiloxKeyA;
    k1 += kPhiloxKeyB;
  }
  // Two rounds of interleaving: 0 with 2 and 1 with 3, then what came out.
  vi first = {}, second = {};
  for (int i = 0; i < kWidth; i++) {
    first[i] = i / 2 + (i % 2) * kWidth;
    second[i] = first[i] + kWidth / 2;
  }
  vu even0 = SHUFFLE2(c0, c2, first), even1 = SHUFFLE2(c0, c2, second);
  vu odd0 = SHUFFLE2(c1, c3, first), odd1 = SHUFFLE2(c1, c3, second);
  words[0] = SHUFFLE2(even0, odd0, first);
  words[1] = SHUFFLE2(even0, odd0, second);
  words[2] = SHUFFLE2(even1, odd1, first);
  words[3] = SHUFFLE2(even1, odd1, second);
}

void rDropout(const float* x, float* y, int64_t i, int64_t n, const DropoutKey* key) {
  bool none = key->threshold > 0xffffffffu;  // nothing is kept
  vu threshold = (vu){} + (uint32_t)key->threshold;
  for (int64_t done = 0; done < n; done += 4 * kWidth) {
    vu words[4];
    philox((uint64_t)(i + done) / 4, key, words);
#pragma GCC unroll 4
    for (int w = 0; w < 4; w++) {
      int64_t at = done + w * kWidth, rest = n - at;
      if (rest <= 0) break;
      bool whole = rest >= kWidth;
      vf kept = (whole ? load(x + i + at) : loadPart(x + i + at, rest)) * key->keep;
      vf v = none ? splat(0.0f) : blend((vi)(words[w] >= threshold), kept, splat(0.0f));
      if (whole) {
        store(y + i + at, v);
      } else {
        storePart(y + i + at, v, rest);
      }
    }
  }
}

bool rAllFinite(const float* x, int64_t n) {
  int64_t i = 0;
  vi bad = {};
  for (; i + kWidth <= n; i += kWidth) bad |= ((vi)load(x + i) & 0x7f800000) == 0x7f800000;
  for (int j = 0; j < kWidth; j++) {
    if (bad[j]) return false;
  }
  for (; i < n; i++) {
    if (!__builtin_isfinite(x[i])) return false;
  }
  return true;
}

void rWidenF16(const uint16_t* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(y + i, widenHalf(*(const vh_any*)(x + i)));
  vh rest = {};
  for (int64_t j = i; j < n; j++) rest[j - i] = x[j];
  if (i < n) storePart(y + i, widenHalf(rest), n - i);
}
#ifndef VEC_HALF
void rNarrowF16(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = narrowHalf1(x[i]);
}
#else
void rNarrowF16(const float* x, uint16_t* y, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) *(vh_any*)(y + i) = narrowHalf(load(x + i));
  if (i < n) {
    vh rest = narrowHalf(loadPart(x + i, n - i));
    for (int64_t j = i; j < n; j++) y[j] = rest[j - i];
  }
}
#endif
void rWidenBf16(const uint16_t* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    vf a, b;
    widenBrains(x + i, &a, &b);
    store(y + i, a);
    store(y + i + kWidth, b);
  }
  for (; i < n; i++) {
    uint32_t u = (uint32_t)x[i] << 16;
    __builtin_memcpy(y + i, &u, 4);
  }
}
// Round to nearest even; a NaN stays one.
void rNarrowBf16(const float* x, uint16_t* y, int64_t n) {
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    *(vhh_any*)(y + i) = upperHalves(exactBrain(load(x + i)), exactBrain(load(x + i + kWidth)));
  }
  for (; i < n; i += kWidth) {
    int64_t rest = n - i < kWidth ? n - i : kWidth;
    vh h = narrowBrain(rest == kWidth ? load(x + i) : loadPart(x + i, rest));
    for (int64_t j = 0; j < rest; j++) y[i + j] = h[j];
  }
}

}  // namespace

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
void rAddTo(const float* x, double* acc, int64_t n) {
  const int h = kWidth / 2;
  int64_t i = 0;
  for (; i + h <= n; i += h) *(vd_any*)(acc + i) += wide(x + i);
  for (; i < n; i++) acc[i] += x[i];
}
void rMulAddTo(const float* d, const float* x, float s, float shift, double* acc, int64_t n) {
  const int h = kWidth / 2;
  double wideS = s, wideShift = shift;
  int64_t i = 0;
  for (; i + h <= n; i += h)
    *(vd_any*)(acc + i) += wide(d + i) * ((wide(x + i) - wideShift) * wideS);
  for (; i < n; i++) acc[i] += (double)d[i] * (((double)x[i] - wideShift) * wideS);
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

typedef uint64_t vl __attribute__((vector_size(kWidth * 4)));

// High and low words of the lanes' products with m; lanes lie low word first in 64-bit pairs.
VEC_INLINE vu multiplyWide(vu a, uint32_t m, vu* low) {
  vl even = ((vl)a & 0xffffffffu) * (uint64_t)m;
  vl odd = ((vl)a >> 32) * (uint64_t)m;
  *low = (vu)((even & 0xffffffffu) | (odd << 32));
  return (vu)((even >> 32) | (odd & ~(uint64_t)0xffffffffu));
}

// A counter in each lane.
void rDropout(const float* x, float* y, int64_t i, int64_t n, const DropoutKey* key) {
  uint32_t words[4 * kWidth], lane[4][kWidth];
  for (int64_t done = 0; done < n; done += 4 * kWidth) {
    for (int j = 0; j < kWidth; j++) {
      uint64_t block = (uint64_t)(i + done) / 4 + (uint64_t)j;
      lane[0][j] = (uint32_t)block;
      lane[1][j] = (uint32_t)(block >> 32);
    }
    vu c0, c1, c2 = (vu){} + key->stream, c3 = (vu){} + key->step;
    __builtin_memcpy(&c0, lane[0], sizeof c0);
    __builtin_memcpy(&c1, lane[1], sizeof c1);
    uint32_t k0 = key->k0, k1 = key->k1;
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
    __builtin_memcpy(lane[0], &c0, sizeof c0);
    __builtin_memcpy(lane[1], &c1, sizeof c1);
    __builtin_memcpy(lane[2], &c2, sizeof c2);
    __builtin_memcpy(lane[3], &c3, sizeof c3);
    for (int j = 0; j < kWidth; j++) {
      for (int r = 0; r < 4; r++) words[4 * j + r] = lane[r][j];
    }
    int64_t rest = n - done < 4 * kWidth ? n - done : 4 * kWidth;
    for (int64_t j = 0; j < rest; j++) {
      float kept = x[i + done + j] * key->keep;
      y[i + done + j] = words[j] >= key->threshold ? kept : 0.0f;
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

// Row primitives: elementwise maps, sums and the pieces of norms, losses and optimizers.

namespace {

// Philox-4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
constexpr uint32_t kPhiloxA = 0xD2511F53u, kPhiloxB = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyA = 0x9E3779B9u, kPhiloxKeyB = 0xBB67AE85u;

constexpr float kRootTwoOverPi = 0.7978845608028654f;
constexpr float kGeluCubic = 0.044715f;  // Hendrycks and Gimpel, Gaussian Error Linear Units
constexpr float kRootHalf = 0.7071067811865476f;
constexpr float kRootHalfOverPi = 0.3989422804014327f;  // 1 / sqrt(2 pi)

void uNeg(const float* x, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) { return -a; });
}
void uAbs(const float* x, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) { return absolute(a); });
}
void uExp(const float* x, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) { return vexp(a); });
}
void uLog(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = __builtin_logf(x[i]);
}
void uSqrt(const float* x, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) { return root(a); });
}
void uRsqrt(const float* x, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) { return 1.0f / root(a); });
}
void uTanh(const float* x, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) { return vtanh(a); });
}
void uSigmoid(const float* x, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) { return vsigmoid(a); });
}
void uRelu(const float* x, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) { return blend(a <= 0.0f, splat(0.0f), a); });
}
void uSilu(const float* x, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) { return a * vsigmoid(a); });
}
// The normal distribution's Phi(x) and density phi(x). With z = |x|/sqrt(2) and t = 1/(1 + 0.35 z),
// exp(z^2) erfc(z) is t times a polynomial that meets it at Chebyshev's nodes for 0 <= z <= 10
// (solved in 60 digits; 1e-8 relative between them).
VEC_INLINE vf normal(vf x, vf* density) {
  vf t = 1.0f / (absolute(x) * (0.35f * kRootHalf) + 1.0f);
  vf q = splat(0.036654727897525496f);
  q = q * t - 0.14954353517677313f;
  q = q * t + 0.15964121485510738f;
  q = q * t + 0.0010456134904007596f;
  q = q * t + 0.06340511023321045f;
  q = q * t + 0.15855468981110274f;
  q = q * t + 0.14691578086629647f;
  q = q * t + 0.1888063983650994f;
  q = q * t + 0.19703073778362717f;
  q = q * t + 0.19748926640106423f;
  vf e = vexp(x * x * -0.5f);
  vf tail = 0.5f * q * t * e;
  *density = e * kRootHalfOverPi;
  return blend(x < 0.0f, tail, 1.0f - tail);
}
void uGeluErf(const float* x, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) {
    vf density;
    return a * normal(a, &density);
  });
}
VEC_INLINE vf geluInner(vf a) { return kRootTwoOverPi * (a + kGeluCubic * a * a * a); }
void uGeluTanh(const float* x, float* y, int64_t n) {
  // 0.5 (1 + tanh u) = sigmoid(2u)
  map1(x, y, n, [=](vf a) { return a * vsigmoid(2.0f * geluInner(a)); });
}

void gSilu(const float* x, const float* dy, float* dx, int64_t n) {
  map2(x, dy, dx, n, [=](vf a, vf d) {
    vf s = vsigmoid(a);
    return d * (s + a * s * (1.0f - s));
  });
}
void gGeluErf(const float* x, const float* dy, float* dx, int64_t n) {
  map2(x, dy, dx, n, [=](vf a, vf d) {
    vf density;
    vf cdf = normal(a, &density);
    return d * (cdf + a * density);
  });
}
void gGeluTanh(const float* x, const float* dy, float* dx, int64_t n) {
  map2(x, dy, dx, n, [=](vf a, vf d) {
    vf s = vsigmoid(2.0f * geluInner(a));
    vf t = clamp(a, -100.0f, 100.0f);  // s (1 - s) is 0 beyond, and a^2 must not overflow
    vf inner = 2.0f * kRootTwoOverPi * (1.0f + 3.0f * kGeluCubic * t * t);
    return d * (s + a * s * (1.0f - s) * inner);
  });
}

template <class F>
VEC_INLINE void pairwise(const float* a, int64_t sa, const float* b, int64_t sb, float* y, int64_t n, F f) {
  if (sa && sb) return map2(a, b, y, n, f);
  if (sa) {
    vf v = splat(*b);
    return map1(a, y, n, [=](vf u) { return f(u, v); });
  }
  vf u = splat(*a);
  if (sb) return map1(b, y, n, [=](vf v) { return f(u, v); });
  vf r = f(u, splat(*b));
  for (int64_t i = 0; i < n; i++) y[i] = r[0];
}
void bAdd(const float* a, int64_t sa, const float* b, int64_t sb, float* y, int64_t n) {
  pairwise(a, sa, b, sb, y, n, [=](vf u, vf v) { return u + v; });
}
void bSub(const float* a, int64_t sa, const float* b, int64_t sb, float* y, int64_t n) {
  pairwise(a, sa, b, sb, y, n, [=](vf u, vf v) { return u - v; });
}
void bMul(const float* a, int64_t sa, const float* b, int64_t sb, float* y, int64_t n) {
  pairwise(a, sa, b, sb, y, n, [=](vf u, vf v) { return u * v; });
}
void bDiv(const float* a, int64_t sa, const float* b, int64_t sb, float* y, int64_t n) {
  pairwise(a, sa, b, sb, y, n, [=](vf u, vf v) { return u / v; });
}
void bMaximum(const float* a, int64_t sa, const float* b, int64_t sb, float* y, int64_t n) {
  pairwise(a, sa, b, sb, y, n, [=](vf u, vf v) { return blend((u > v) | (u != u), u, v); });
}
void bMinimum(const float* a, int64_t sa, const float* b, int64_t sb, float* y, int64_t n) {
  pairwise(a, sa, b, sb, y, n, [=](vf u, vf v) { return blend((u < v) | (u != u), u, v); });
}

void rAffine(const float* x, float scale, float shift, float* y, int64_t n) {
  map1(x, y, n, [=](vf a) { return a * scale + shift; });
}
void rSwiglu(const float* gate, const float* up, float* y, int64_t n) {
  map2(gate, up, y, n, [=](vf g, vf u) { return g * vsigmoid(g) * u; });
}
void rSwigluGrad(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t n) {
  for (int64_t i = 0; i < n; i += kWidth) {
    int64_t r = n - i;
    bool whole = r >= kWidth;
    vf g = whole ? load(gate + i) : loadPart(gate + i, r);
    vf u = whole ? load(up + i) : loadPart(up + i, r);
    vf d = whole ? load(dy + i) : loadPart(dy + i, r);
    vf s = vsigmoid(g);
    vf silu = g * s;
    vf dg = d * u * (s + silu * (1.0f - s));
    vf du = d * silu;
    if (whole) {
      store(dgate + i, dg);
      store(dup + i, du);
    } else {
      storePart(dgate + i, dg, r);
      storePart(dup + i, du, r);
    }
  }
}

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
  return sumWide(n, [=](int64_t i) { return wide(x + i); }, [=](int64_t i) { return (double)x[i]; });
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
  return sumWide(n, [=](int64_t i) { return wide(a + i) * wide(b + i); },
                 [=](int64_t i) { return (double)a[i] * b[i]; });
}
double rDot3(const float* a, const float* b, const float* c, int64_t n) {
  return sumWide(n, [=](int64_t i) { return wide(a + i) * wide(b + i) * wide(c + i); },
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
void rNormGrad(const float* w, const float* d, float s, const float* x, float t, float u, float* y, int64_t n) {
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
  for (; i + h <= n; i += h) *(vd_any*)(acc + i) += wide(d + i) * ((wide(x + i) - wideShift) * wideS);
  for (; i < n; i++) acc[i] += (double)d[i] * (((double)x[i] - wideShift) * wideS);
}
void rNormalize(const float* x, float shift, float s, const float* w, const float* b, float* y, int64_t n) {
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
      vf a = loadPart(x1 + i, r), b = loadPart(x2 + i, r), cs = loadPart(c + i, r), sn = loadPart(s + i, r);
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
      vu lowA, lowB, highA = multiplyWide(c0, kPhiloxA, &lowA), highB = multiplyWide(c2, kPhiloxB, &lowB);
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

#ifndef VEC_HALF
void rWidenF16(const uint16_t* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(y + i, widenHalf(*(const vh_any*)(x + i)));
  vh rest = {};
  for (int64_t j = i; j < n; j++) rest[j - i] = x[j];
  if (i < n) storePart(y + i, widenHalf(rest), n - i);
}
void rNarrowF16(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = narrowHalf1(x[i]);
}
#else
void rWidenF16(const uint16_t* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(y + i, widenHalf(*(const vh_any*)(x + i)));
  vh rest = {};
  for (int64_t j = i; j < n; j++) rest[j - i] = x[j];
  if (i < n) storePart(y + i, widenHalf(rest), n - i);
}
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
  for (int64_t i = 0; i < n; i++) {
    uint32_t u = (uint32_t)x[i] << 16;
    __builtin_memcpy(y + i, &u, 4);
  }
}
// Round to nearest even; a NaN stays one.
void rNarrowBf16(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t u;
    __builtin_memcpy(&u, x + i, 4);
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    y[i] = (uint16_t)(nan ? (u >> 16 | 0x40u) : (u + 0x7fffu + (u >> 16 & 1)) >> 16);
  }
}

}  // namespace

// Elementwise maps: activations, their gradients, and arithmetic on pairs.

namespace {

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
  vf e = vexpBelow(x * x * -0.5f);
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
VEC_INLINE void pairwise(const float* a, int64_t sa, const float* b, int64_t sb, float* y,
                         int64_t n, F f) {
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
void rSwigluGrad(const float* gate, const float* up, const float* dy, float* dgate, float* dup,
                 int64_t n) {
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

}  // namespace

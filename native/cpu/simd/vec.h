// Vectors of kWidth floats through the compiler's vector extensions, and exp and its kin on them.
// Included by the instruction-set files after they set the target and kWidth; all names are local.

namespace {

#define VEC_INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(kWidth * 4)));
typedef int32_t vi __attribute__((vector_size(kWidth * 4)));
typedef uint16_t vh __attribute__((vector_size(kWidth * 2)));
typedef uint32_t vu __attribute__((vector_size(kWidth * 4)));
typedef float vf_any __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
// Half as many doubles, and the floats that become them.
typedef double vd __attribute__((vector_size(kWidth * 4)));
typedef double vd_any __attribute__((vector_size(kWidth * 4), aligned(8), may_alias));
typedef float vq __attribute__((vector_size(kWidth * 2)));
typedef float vq_any __attribute__((vector_size(kWidth * 2), aligned(4), may_alias));

#ifdef VEC_MANY
constexpr bool kManyRegisters = true;  // 32 of them, not 16
#else
constexpr bool kManyRegisters = false;
#endif

VEC_INLINE vf splat(float x) { return x - (vf){}; }
VEC_INLINE vi isplat(int32_t x) { return x - (vi){}; }
VEC_INLINE vf load(const float* p) { return *(const vf_any*)p; }
VEC_INLINE void store(float* p, vf v) { *(vf_any*)p = v; }

// Lane i is lane index[i] of a and, behind them, b; the index must be known to the compiler.
#ifdef __clang__
template <class V>
VEC_INLINE V SHUFFLE2(V a, V b, vi index) {
  V v = {};
#pragma clang loop unroll(full)
  for (int i = 0; i < kWidth; i++) v[i] = index[i] < kWidth ? a[index[i]] : b[index[i] - kWidth];
  return v;
}
#else
#define SHUFFLE2(a, b, index) __builtin_shuffle(a, b, index)
#endif

VEC_INLINE vi lanes() {
  vi v = {};
  for (int i = 0; i < kWidth; i++) v[i] = i;
  return v;
}

// The first n <= kWidth elements, zeros behind them.
#ifndef VEC_PARTIAL
VEC_INLINE vf loadPart(const float* p, int64_t n) {
  vf v = {};
  for (int64_t i = 0; i < n; i++) v[i] = p[i];
  return v;
}
VEC_INLINE void storePart(float* p, vf v, int64_t n) {
  for (int64_t i = 0; i < n; i++) p[i] = v[i];
}
#endif

VEC_INLINE vf blend(vi mask, vf yes, vf no) { return mask ? yes : no; }
#ifndef VEC_MINMAX
// NaN in a gives b; NaN in b gives b.
VEC_INLINE vf larger(vf a, vf b) { return blend(a > b, a, b); }
VEC_INLINE vf smaller(vf a, vf b) { return blend(a < b, a, b); }
#endif
VEC_INLINE vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }

// a * b + c, rounded once where the processor can: said outright where bits must not depend on
// what the compiler sees around it.
#ifndef VEC_FUSED
VEC_INLINE vf fused(vf a, vf b, vf c) { return a * b + c; }
#endif

// acc[i][j] += a[i] b[j]
#ifndef VEC_LANES
template <int MR, int NV>
VEC_INLINE void outer(const float* a, const vf (&b)[NV], vf (&acc)[MR][NV]) {
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
    vf av = splat(a[i]);
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = fused(av, b[j], acc[i][j]);
  }
}
#endif

#ifndef VEC_SQRT
VEC_INLINE vf root(vf x) {
  for (int i = 0; i < kWidth; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
#endif

#ifndef VEC_HALF
// IEEE half to float by scaling the exponent; subnormals come out exact, infinities and NaN stay.
VEC_INLINE vf widenHalf(vh h) {
  vu w = __builtin_convertvector(h, vu);
  vu sign = (w & 0x8000u) << 16;
  vu bits = (w & 0x7fffu) << 13;
  vf scaled = (vf)bits * 0x1p112f;
  vu special = (vu)(vi)((w & 0x7c00u) == 0x7c00u);
  vu out = ((vu)scaled & ~special) | ((bits | 0x7f800000u) & special);
  return (vf)(out | sign);
}
// Round to nearest even.
VEC_INLINE uint16_t narrowHalf1(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  uint32_t sign = u >> 16 & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (u >> 13 & 0x3ffu));
  if (u >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);
  if (u < 0x38800000u) {  // below 2^-14: let the addition round at the subnormals' last place
    float magnitude, bias = 0.5f;
    __builtin_memcpy(&magnitude, &u, 4);
    magnitude += bias;
    __builtin_memcpy(&u, &magnitude, 4);
    return (uint16_t)(sign | (u - 0x3f000000u));
  }
  u += 0xc8000fffu + (u >> 13 & 1);  // rebias by -112 and round
  return (uint16_t)(sign | (u >> 13));
}
#endif

#ifndef VEC_BRAIN
VEC_INLINE vf widenBrain(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }
VEC_INLINE void widenBrains(const uint16_t* p, vf* a, vf* b) {
  *a = widenBrain(*(const vh_any*)p);
  *b = widenBrain(*(const vh_any*)(p + kWidth));
}
typedef uint16_t vhh __attribute__((vector_size(kWidth * 4)));
VEC_INLINE vhh joined(vh a, vh b) {
  vh two[2] = {a, b};
  vhh v;
  __builtin_memcpy(&v, two, sizeof v);
  return v;
}
// The upper halves of the lanes of a, then those of b.
VEC_INLINE vhh upperHalves(vu a, vu b) {
  return joined(__builtin_convertvector(a >> 16, vh), __builtin_convertvector(b >> 16, vh));
}
VEC_INLINE bool anyAbove(vi x, int32_t limit) {
  vi above = x > limit;
  int32_t any = 0;
  for (int i = 0; i < kWidth; i++) any |= above[i];
  return any != 0;
}
#endif
typedef vhh vhh_any __attribute__((aligned(2), may_alias));

// Rounds to nearest even in the upper half; of a NaN the result is any.
VEC_INLINE vu nearBrain(vf x) {
  vu u = (vu)x;
  return u + 0x7fffu + (u >> 16 & 1);
}
// The same, and a NaN stays one.
VEC_INLINE vu exactBrain(vf x) {
  vu nan = (vu)(vi)(x != x);
  return (nearBrain(x) & ~nan) | (((vu)x | 0x400000u) & nan);
}
VEC_INLINE vh narrowBrain(vf x) { return __builtin_convertvector(exactBrain(x) >> 16, vh); }

// exp(x) = 2^n (1 + p) with p = exp(r) - 1, |r| <= ln(2)/2; `power` is n + 1.5 * 2^23, exact for
// |x| < 2^21. Taylor to r^7: the rest is below 6e-9 relative, a tenth of an ulp.
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
VEC_INLINE vf expParts(vf x, vf* power) {
  const float log2e = 1.4426950408889634f;
  const float hi = 0.693145751953125f;  // ln 2 to 16 bits, so n*hi is exact
  const float lo = 1.4286068203094172e-06f;
  *power = x * log2e + kMagic;
  vf k = *power - kMagic;
  vf r = x - k * hi;
  r = r - k * lo;
  vf q = splat(1.0f / 5040);
  q = q * r + 1.0f / 720;
  q = q * r + 1.0f / 120;
  q = q * r + 1.0f / 24;
  q = q * r + 1.0f / 6;
  q = q * r + 0.5f;
  return r * r * q + r;
}

#ifdef VEC_SCALE
// x 2^n, rounded once, for the `power` of expParts().
VEC_INLINE vf timesPower(vf x, vf power) { return scaled(x, power - kMagic); }
#else
VEC_INLINE vf timesPower(vf x, vf power) {
  vi n = (vi)power - (vi)splat(kMagic);
  vi half = n >> 1;
  vf first = (vf)((half + 127) << 23);
  vf second = (vf)((n - half + 127) << 23);
  return x * first * second;  // two steps, so that subnormals and overflow round rightly
}
#endif

// x limited to [lo, hi]; NaN passes.
VEC_INLINE vf clamp(vf x, float lo, float hi) { return smaller(splat(hi), larger(splat(lo), x)); }

VEC_INLINE vf vexp(vf x) {
  vf power, p = expParts(clamp(x, -105.0f, 89.0f), &power);
  return timesPower(p + 1.0f, power);
}
// For x <= 0.
VEC_INLINE vf vexpBelow(vf x) {
  vf power, p = expParts(larger(splat(-105.0f), x), &power);
  return timesPower(p + 1.0f, power);
}

// exp(x) - 1 for x in [0, 88], relative error small near 0, too.
VEC_INLINE vf expm1Positive(vf x) {
  vf power, p = expParts(clamp(x, 0.0f, 88.0f), &power);
  vf scale = timesPower(splat(1.0f), power);
  return scale * p + (scale - 1.0f);
}

VEC_INLINE vf vtanh(vf x) {
  vf t = expm1Positive(absolute(x) * 2.0f);
  vf y = t / (t + 2.0f);
  return (vf)((vi)y | ((vi)x & (int32_t)0x80000000));
}

VEC_INLINE vf vsigmoid(vf x) {
  vf e = vexpBelow((vf)((vi)x | (int32_t)0x80000000));  // exp(-|x|)
  return blend((vi)x < 0, e, splat(1.0f)) / (e + 1.0f);
}

// y[i] = f(x[i]); the rest of a row takes the same steps in a part-filled vector.
template <class F>
VEC_INLINE void map1(const float* x, float* y, int64_t n, F f) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(y + i, f(load(x + i)));
  if (i < n) storePart(y + i, f(loadPart(x + i, n - i)), n - i);
}

template <class F>
VEC_INLINE void map2(const float* a, const float* b, float* y, int64_t n, F f) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(y + i, f(load(a + i), load(b + i)));
  if (i < n) {
    int64_t r = n - i;
    storePart(y + i, f(loadPart(a + i, r), loadPart(b + i, r)), r);
  }
}

template <class F>
VEC_INLINE void map3(const float* a, const float* b, const float* c, float* y, int64_t n, F f) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(y + i, f(load(a + i), load(b + i), load(c + i)));
  if (i < n) {
    int64_t r = n - i;
    storePart(y + i, f(loadPart(a + i, r), loadPart(b + i, r), loadPart(c + i, r)), r);
  }
}

VEC_INLINE vq quarter(const float* p) { return *(const vq_any*)p; }
VEC_INLINE vd wide(const float* p) { return __builtin_convertvector(quarter(p), vd); }

VEC_INLINE double total(vd v) {
  double s = 0;
  for (int i = 0; i < kWidth / 2; i++) s += v[i];
  return s;
}

// Sum of f over a row in doubles; f gets the offset of kWidth/2 elements.
template <class F, class G>
VEC_INLINE double sumWide(int64_t n, F f, G scalar) {
  const int h = kWidth / 2;
  vd s0 = {}, s1 = {}, s2 = {}, s3 = {};
  int64_t i = 0;
  for (; i + 4 * h <= n; i += 4 * h) {
    s0 += f(i);
    s1 += f(i + h);
    s2 += f(i + 2 * h);
    s3 += f(i + 3 * h);
  }
  for (; i + h <= n; i += h) s0 += f(i);
  double s = total((s0 + s1) + (s2 + s3));
  for (; i < n; i++) s += scalar(i);
  return s;
}

}  // namespace

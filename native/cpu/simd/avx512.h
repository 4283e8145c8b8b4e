// AVX-512's share of vec.h's vectors, for every instruction set that builds on it: 64-byte vectors,
// 14x32 register blocks. Included inside namespace lowrank, after isa.h and the target's pragma.
#define VEC_PARTIAL
#define VEC_SQRT
#define VEC_FUSED
#define VEC_HALF
#define VEC_BRAIN
#define VEC_TRANSPOSE
#define VEC_MINMAX
#define VEC_SCALE
#define VEC_WIDE
#define VEC_MANY

namespace {
constexpr int kWidth = 16;
constexpr int kRows = 14;
constexpr int kVecs = 2;

inline __mmask16 firstLanes(int64_t n) { return (__mmask16)((1u << n) - 1); }
inline __m512 loadPart(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(firstLanes(n), p);
}
inline void storePart(float* p, __m512 v, int64_t n) { _mm512_mask_storeu_ps(p, firstLanes(n), v); }
inline __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
// A NaN in either gives b.
inline __m512 larger(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
inline __m512 smaller(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
// x 2^n for a whole n, rounded once.
inline __m512 scaled(__m512 x, __m512 n) { return _mm512_scalef_ps(x, n); }
inline __m512 root(__m512 x) { return _mm512_sqrt_ps(x); }

typedef uint16_t halves16 __attribute__((vector_size(32)));
inline __m512 widenHalf(halves16 h) { return _mm512_cvtph_ps((__m256i)h); }

// bf16 is the upper half of an f32.
inline __m512 widenBrain(halves16 h) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
}
inline void widenBrains(const uint16_t* p, __m512* a, __m512* b) {
  *a = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
  *b = (__m512)_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(p + 16))), 16);
}
typedef uint16_t vhh __attribute__((vector_size(64)));
typedef uint32_t words16 __attribute__((vector_size(64)));
inline vhh joined(halves16 a, halves16 b) {
  return (vhh)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)a), (__m256i)b, 1);
}
// The upper halves of the lanes of a, then those of b.
inline vhh upperHalves(words16 a, words16 b) {
  const vhh odd = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                   33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return (vhh)_mm512_permutex2var_epi16((__m512i)a, (__m512i)odd, (__m512i)b);
}
// Low and high words of the products of the lanes with m.
inline words16 multiplyWide(words16 a, uint32_t m, words16* low) {
  __m512i factor = _mm512_set1_epi32((int)m);
  __m512i even = _mm512_mul_epu32((__m512i)a, factor);
  __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), factor);
  *low = (words16)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  return (words16)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
}
typedef int32_t signed16 __attribute__((vector_size(64)));
inline bool anyAbove(signed16 x, int32_t limit) {
  return _mm512_cmpgt_epi32_mask((__m512i)x, _mm512_set1_epi32(limit)) != 0;
}

// Row i of v becomes its column i: within 16-byte lanes by pairs of rows, then lanes by fours.
inline void transpose(__m512* v) {
  __m512 t[16], u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    u[i] = (__m512)_mm512_unpacklo_pd((__m512d)t[i], (__m512d)t[i + 2]);
    u[i + 1] = (__m512)_mm512_unpackhi_pd((__m512d)t[i], (__m512d)t[i + 2]);
    u[i + 2] = (__m512)_mm512_unpacklo_pd((__m512d)t[i + 1], (__m512d)t[i + 3]);
    u[i + 3] = (__m512)_mm512_unpackhi_pd((__m512d)t[i + 1], (__m512d)t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    __m512 a = _mm512_shuffle_f32x4(u[i], u[4 + i], 0x88);
    __m512 b = _mm512_shuffle_f32x4(u[i], u[4 + i], 0xdd);
    __m512 c = _mm512_shuffle_f32x4(u[8 + i], u[12 + i], 0x88);
    __m512 d = _mm512_shuffle_f32x4(u[8 + i], u[12 + i], 0xdd);
    v[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    v[4 + i] = _mm512_shuffle_f32x4(b, d, 0x88);
    v[8 + i] = _mm512_shuffle_f32x4(a, c, 0xdd);
    v[12 + i] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}
}  // namespace

// AVX2 with FMA and F16C: 32-byte vectors, 6x16 register blocks.
#if defined(__x86_64__)

#include <stdint.h>

#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#endif

#include "isa.h"

#define VEC_PARTIAL
#define VEC_SQRT
#define VEC_FUSED
#define VEC_HALF
#define VEC_BRAIN
#define VEC_TRANSPOSE
#define VEC_MINMAX
#define VEC_WIDE
#define VEC_STREAM

namespace lowrank {

namespace {
constexpr int kWidth = 8;
constexpr int kRows = 6;
constexpr int kVecs = 2;
constexpr const char* kIsaName = "avx2";

inline __m256i firstLanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256 loadPart(const float* p, int64_t n) { return _mm256_maskload_ps(p, firstLanes(n)); }
inline void storePart(float* p, __m256 v, int64_t n) { _mm256_maskstore_ps(p, firstLanes(n), v); }
inline __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
// A NaN in either gives b.
inline __m256 larger(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
inline __m256 smaller(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
inline __m256 root(__m256 x) { return _mm256_sqrt_ps(x); }

typedef uint16_t halves8 __attribute__((vector_size(16)));
inline __m256 widenHalf(halves8 h) { return _mm256_cvtph_ps((__m128i)h); }
inline halves8 narrowHalf(__m256 x) {
  return (halves8)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
}

// bf16 is the upper half of an f32.
inline __m256 widenBrain(halves8 h) {
  return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
}
inline void widenBrains(const uint16_t* p, __m256* a, __m256* b) {
  *a = widenBrain((halves8)_mm_loadu_si128((const __m128i*)p));
  *b = widenBrain((halves8)_mm_loadu_si128((const __m128i*)(p + 8)));
}
typedef uint16_t vhh __attribute__((vector_size(32)));
typedef uint32_t words8 __attribute__((vector_size(32)));
inline vhh joined(halves8 a, halves8 b) { return (vhh)_mm256_set_m128i((__m128i)b, (__m128i)a); }
// The upper halves of the lanes of a, then those of b.
inline vhh upperHalves(words8 a, words8 b) {
  __m256i packed =
      _mm256_packus_epi32(_mm256_srli_epi32((__m256i)a, 16), _mm256_srli_epi32((__m256i)b, 16));
  return (vhh)_mm256_permute4x64_epi64(packed, 0xd8);
}
// Low and high words of the products of the lanes with m.
inline words8 multiplyWide(words8 a, uint32_t m, words8* low) {
  __m256i factor = _mm256_set1_epi32((int)m);
  __m256i even = _mm256_mul_epu32((__m256i)a, factor);
  __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), factor);
  *low = (words8)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  return (words8)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}
typedef int32_t signed8 __attribute__((vector_size(32)));
inline bool anyAbove(signed8 x, int32_t limit) {
  return _mm256_movemask_epi8(_mm256_cmpgt_epi32((__m256i)x, _mm256_set1_epi32(limit))) != 0;
}

// Row i of v becomes its column i: within 16-byte lanes by pairs of rows, then lanes by twos.
inline void transpose(__m256* v) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    u[i] = (__m256)_mm256_unpacklo_pd((__m256d)t[i], (__m256d)t[i + 2]);
    u[i + 1] = (__m256)_mm256_unpackhi_pd((__m256d)t[i], (__m256d)t[i + 2]);
    u[i + 2] = (__m256)_mm256_unpacklo_pd((__m256d)t[i + 1], (__m256d)t[i + 3]);
    u[i + 3] = (__m256)_mm256_unpackhi_pd((__m256d)t[i + 1], (__m256d)t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    v[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    v[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

// Past the caches, to an address of whole vectors.
inline void stream(float* p, __m256 v) { _mm256_stream_ps(p, v); }
inline void stream(uint16_t* p, vhh v) { _mm256_stream_si256((__m256i*)p, (__m256i)v); }
}  // namespace

// Order matters: each builds on those before it.
// clang-format off
#include "simd/vec.h"
#include "simd/maps.h"
#include "simd/rows.h"
#include "simd/gemm.h"
#include "simd/attention.h"
#include "simd/lowrank.h"
#include "simd/merge.h"
#include "simd/turn.h"
#define LOWRANK_TABLE lowrankIsaAvx2
#include "simd/table.h"
// clang-format on

}  // namespace lowrank

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif

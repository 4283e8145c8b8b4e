// AVX-512 (F, BW, DQ, VL): 64-byte vectors, 14x32 register blocks.
#if defined(__x86_64__)

#include <stdint.h>

#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(                                                                 \
    __attribute__((                                                                           \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
// gcc 12's own header trips this warning (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#endif

#include "isa.h"

#define SHUFFLE2(a, b, index) __builtin_shuffle(a, b, index)
#define VEC_PARTIAL
#define VEC_SQRT
#define VEC_FUSED
#define VEC_HALF
#define VEC_STREAM

namespace lowrank {

namespace {
constexpr int kWidth = 16;
constexpr int kRows = 14;
constexpr int kVecs = 2;
constexpr const char* kIsaName = "avx512";

inline __mmask16 firstLanes(int64_t n) { return (__mmask16)((1u << n) - 1); }
inline __m512 loadPart(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(firstLanes(n), p);
}
inline void storePart(float* p, __m512 v, int64_t n) { _mm512_mask_storeu_ps(p, firstLanes(n), v); }
inline __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512 root(__m512 x) { return _mm512_sqrt_ps(x); }

typedef uint16_t halves16 __attribute__((vector_size(32)));
inline __m512 widenHalf(halves16 h) { return _mm512_cvtph_ps((__m256i)h); }
inline halves16 narrowHalf(__m512 x) {
  return (halves16)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Past the caches, to an address of whole vectors.
inline void stream(float* p, __m512 v) { _mm512_stream_ps(p, v); }
inline void stream(uint16_t* p, halves16 v) { _mm256_stream_si256((__m256i*)p, (__m256i)v); }
}  // namespace

// Order matters: each builds on those before it.
// clang-format off
#include "simd/vec.h"
#include "simd/maps.h"
#include "simd/rows.h"
#include "simd/gemm.h"
#include "simd/lowrank.h"
#define LOWRANK_TABLE lowrankIsaAvx512
#include "simd/table.h"
// clang-format on

}  // namespace lowrank

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif

// AVX-512 (F, BW, DQ, VL): 64-byte vectors, 14x32 register blocks.
#if defined(__x86_64__)

#include <stdint.h>

#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
// gcc 12's own header trips this warning (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#endif

#include "isa.h"

#define VEC_STREAM

namespace lowrank {

#include "simd/avx512.h"

namespace {
constexpr const char* kIsaName = "avx512";

inline halves16 narrowHalf(__m512 x) {
  return (halves16)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Past the caches, to an address of whole vectors.
inline void stream(float* p, __m512 v) { _mm512_stream_ps(p, v); }
inline void stream(uint16_t* p, vhh v) { _mm512_stream_si512((__m512i*)p, (__m512i)v); }
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
#define LOWRANK_TABLE lowrankIsaAvx512
#include "simd/table.h"
// clang-format on

}  // namespace lowrank

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif

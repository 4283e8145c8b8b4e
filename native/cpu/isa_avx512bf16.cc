// AVX512-BF16: products of bf16 pairs with sums in f32, 14x32 register blocks. Everything else of
// this instruction set is AVX-512's.
#if defined(__x86_64__)

#include <stdint.h>

#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target( \
    "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
// gcc 12's own header trips this warning (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#endif

#include "isa.h"

#define GEMM_PAIRS

namespace lowrank {

// clang-format off
#include "simd/avx512.h"
#include "simd/vec.h"
#include "simd/gemm.h"
// clang-format on

extern "C" const GemmKernels lowrankBrainProduct;
const GemmKernels lowrankBrainProduct = GEMM_KERNELS;

}  // namespace lowrank

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif

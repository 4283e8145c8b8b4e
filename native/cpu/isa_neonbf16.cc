// NEON with BF16: products of bf16 pairs (BFDOT) with sums in f32, 6x16 register blocks. Everything
// else of this instruction set is NEON's. Compilers that cannot build it for some processors only
// leave it out.
#if defined(__aarch64__)

#include <stdint.h>

#if defined(__clang__)
#include <arm_neon.h>
#if __clang_major__ >= 16
#define LOWRANK_BFDOT
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#endif
#elif __GNUC__ >= 10
#define LOWRANK_BFDOT
#pragma GCC target("arch=armv8.2-a+bf16")
#include <arm_neon.h>
#endif

#include "isa.h"

namespace lowrank {

extern "C" const GemmKernels* const lowrankNeonBrainProduct;

#ifdef LOWRANK_BFDOT
#define GEMM_PAIRS

// clang-format off
#include "simd/neon.h"
#include "simd/vec.h"
#include "simd/gemm.h"
// clang-format on

namespace {
const GemmKernels kBrainProduct = GEMM_KERNELS;
}
const GemmKernels* const lowrankNeonBrainProduct = &kBrainProduct;
#else
const GemmKernels* const lowrankNeonBrainProduct = nullptr;
#endif

}  // namespace lowrank

#if defined(__clang__) && defined(LOWRANK_BFDOT)
#pragma clang attribute pop
#endif

#endif

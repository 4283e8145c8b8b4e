// NEON, which every 64-bit ARM processor has: 16-byte vectors, 6x16 register blocks.
#if defined(__aarch64__)

#include <arm_neon.h>
#include <stdint.h>

#include "isa.h"

namespace lowrank {

#include "simd/neon.h"

namespace {
constexpr const char* kIsaName = "neon";
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
#define LOWRANK_TABLE lowrankIsaNeon
#include "simd/table.h"
// clang-format on

}  // namespace lowrank

#endif

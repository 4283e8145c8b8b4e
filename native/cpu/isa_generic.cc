// The baseline: 16-byte vectors, which every 64-bit processor has.
#include <stdint.h>

#include "isa.h"

namespace lowrank {

namespace {
constexpr int kWidth = 4;
constexpr int kRows = 6;
constexpr int kVecs = 2;
constexpr const char* kIsaName = "generic";
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
#define LOWRANK_TABLE lowrankIsaGeneric
#include "simd/table.h"
// clang-format on

}  // namespace lowrank

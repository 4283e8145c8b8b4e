// How fast this machine's registers multiply and add: the yardstick of the benchmarks.
#pragma once

#include "../common/registry.h"

namespace lowrank {

// GFLOP/s of independent f32 fused multiply-adds in the widest registers, on the context's threads.
double fmaPeak(Context& context);

}  // namespace lowrank

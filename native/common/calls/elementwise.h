// The calls of binary ops that broadcast.
#pragma once

#include "../axes.h"
#include "../call.h"

namespace lowrank {

// Tensors a and b to y, at least one axis.
inline AxisPairs broadcastPairs(const Call& args) {
  args.counts(3, 0);
  args.floating(0);
  args.floating(1);
  const View& y = args.out(2);
  int64_t steps[2][kMaxRank];
  for (size_t i = 0; i < 2; i++) {
    EXPECT(args, stepsOver(args[i], y, steps[i]),
           "tensor " + std::to_string(i) + " to broadcast to " + y.describe(), args[i].describe());
  }
  AxisPairs p = joined(y.dims, y.rank, steps[0], steps[1]);
  if (p.rank == 0) p.dims[p.rank++] = 1;
  return p;
}

}  // namespace lowrank

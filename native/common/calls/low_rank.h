// The calls of LoRA's branches for rows that name their adapters: what their tensors must fit.
#pragma once

#include "../call.h"

namespace lowrank {

// `like` has the shape of `wide` but for the last axis; at least two axes.
inline void checkBatch(const Call& args, const View& wide, const View& like, const char* expected) {
  View same = wide;
  if (wide.rank > 0 && like.rank > 0) same.dims[wide.rank - 1] = like.last();
  same.dtype = like.dtype;
  EXPECT(args, wide.rank >= 2 && same.sameShape(like), expected,
         wide.describe() + " and " + like.describe());
}

// Tensor i is an A [r, width] or a B [width, r]; r below 0 becomes its rank.
inline void checkSide(const Call& args, size_t i, int64_t& r, int64_t width, bool isA) {
  const View& v = args[i];
  bool fits = isFloat(v.dtype) && v.rank == 2 && v.dims[isA ? 1 : 0] == width;
  EXPECT(args, fits && (r < 0 || v.dims[isA ? 0 : 1] == r),
         isA ? "A [r, " + std::to_string(width) + "]"
             : "B [" + std::to_string(width) + ", " + (r < 0 ? "r" : std::to_string(r)) + "]",
         v.describe());
  r = v.dims[isA ? 0 : 1];
}

// Tensor i as the gradient of such an A or B.
inline float* sideGrad(const Call& args, size_t i, int64_t& r, int64_t width, bool isA) {
  const View& v = args.out(i);
  bool fits = v.rank == 2 && v.dims[isA ? 1 : 0] == width && (r < 0 || v.dims[isA ? 0 : 1] == r);
  EXPECT(args, fits, isA ? "dA of A's shape" : "dB of B's shape", v.describe());
  r = v.dims[isA ? 0 : 1];
  return v.as<float>();
}

}  // namespace lowrank

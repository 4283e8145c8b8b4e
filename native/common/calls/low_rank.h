// The calls of LoRA's branches and merges: what their tensors must fit.
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

// W [out, in] as tensor 0 ([in, out] where attribute 0 is 1) and pairs of A [r, in] and B [out, r].
inline void checkWeight(const Call& args, size_t pairs) {
  const View& w = args[0];
  bool transposed = args.integer(0, 0, 1) != 0;
  EXPECT(args, w.rank == 2 && isFloat(w.dtype), "W [out, in] of f32, f16 or bf16", w.describe());
  int64_t in = w.dims[transposed ? 0 : 1], out = w.dims[transposed ? 1 : 0];
  for (size_t i = 0; i < pairs; i++) {
    const View &a = args[1 + 2 * i], &b = args[2 + 2 * i];
    bool fits = isFloat(a.dtype) && isFloat(b.dtype) && a.rank == 2 && b.rank == 2 &&
                a.dims[1] == in && b.dims[0] == out && b.dims[1] == a.dims[0];
    EXPECT(args, fits, "A [r, " + std::to_string(in) + "] and B [" + std::to_string(out) + ", r]",
           a.describe() + " and " + b.describe());
  }
}

// W and pairs into y and ok [1]; answers how many pairs.
inline size_t mergePairs(const Call& args) {
  EXPECT(args, args.count >= 3 && args.count % 2 == 1, "W, pairs of A and B, y and ok",
         std::to_string(args.count) + " tensors");
  size_t pairs = (args.count - 3) / 2;
  args.counts(args.count, 1 + pairs);
  const View& y = args.writable(args.count - 2);
  args.out(args.count - 1, DType::i32);
  args.sameShape(0, args.count - 2);
  args.shaped(args.count - 1, {1});
  EXPECT(args, isFloat(y.dtype), "y of f32, f16 or bf16", y.describe());
  checkWeight(args, pairs);
  return pairs;
}

// W and one pair into the lengths of the rows of the sum, [out].
inline void checkNorms(const Call& args) {
  args.counts(4, 2);
  checkWeight(args, 1);
  args.out(3);
  args.shaped(3, {args[0].dims[args.integer(0, 0, 1) != 0 ? 1 : 0]});
}

}  // namespace lowrank

// The calls of products.
#pragma once

#include "../call.h"

namespace lowrank {

// y [.., m, n] = alpha op(a) op(b), with y's batch axes and the steps of a and b along them.
struct MatmulCall {
  int64_t m, n, k;
  bool transA, transB, accumulate;
  float alpha;
  int batchAxes;
  int64_t batches;
  int64_t aSteps[kMaxRank], bSteps[kMaxRank];  // in elements, 0 where it repeats
  bool tall;  // one b for the rows of all batches: one product of batches * m rows
};

// Steps of tensor i along y's batch axes, which its own broadcast to.
inline void batchSteps(const Call& args, size_t i, int64_t* steps) {
  const View &x = args[i], &y = args[2];
  int64_t step = x.dims[x.rank - 1] * x.dims[x.rank - 2];
  int axes = y.rank - 2, own = x.rank - 2;
  EXPECT(args, own <= axes,
         "tensor " + std::to_string(i) + " with at most the axes of " + y.describe(), x.describe());
  for (int d = axes - 1, s = own - 1; d >= 0; d--, s--) {
    int64_t size = s >= 0 ? x.dims[s] : 1;
    EXPECT(args, size == 1 || size == y.dims[d], "batch axes that broadcast to " + y.describe(),
           x.describe());
    steps[d] = size == 1 ? 0 : step;
    step *= size;
  }
}

inline MatmulCall matmulCall(const Call& args) {
  args.counts(3, 4);
  const View &a = args[0], &b = args[1], &y = args.activations(2);
  MatmulCall c = {};
  c.transA = args.integer(0, 0, 1) != 0;
  c.transB = args.integer(1, 0, 1) != 0;
  EXPECT(args, isFloat(a.dtype) && isFloat(b.dtype), "factors of f32, f16 or bf16",
         a.describe() + " and " + b.describe());
  EXPECT(args, a.rank >= 2 && b.rank >= 2 && y.rank >= 2, "matrices",
         a.describe() + ", " + b.describe() + " and " + y.describe());
  c.m = a.dim(c.transA ? -1 : -2);
  c.k = a.dim(c.transA ? -2 : -1);
  c.n = b.dim(c.transB ? -2 : -1);
  EXPECT(args, b.dim(c.transB ? -1 : -2) == c.k,
         "[.., " + std::to_string(c.k) + "] to meet [" + std::to_string(c.k) + ", ..]",
         a.describe() + " and " + b.describe());
  EXPECT(args, y.dim(-2) == c.m && y.dim(-1) == c.n,
         "an output of [.., " + std::to_string(c.m) + ", " + std::to_string(c.n) + "]",
         y.describe());
  c.batchAxes = y.rank - 2;
  c.batches = y.product(0, c.batchAxes);
  batchSteps(args, 0, c.aSteps);
  batchSteps(args, 1, c.bSteps);
  c.alpha = static_cast<float>(args.attrs[2]);
  c.accumulate = args.integer(3, 0, 1) != 0;
  c.tall = !c.transA && a.rank == y.rank && a.product(0, a.rank - 2) == c.batches &&
           b.product(0, b.rank - 2) == 1;
  return c;
}

// y [.., n] = x [.., k] wᵀ + b, of m rows; turned: w is [k, n].
struct LinearCall {
  int64_t m, n, k;
  bool biased, turned;
  const View& y;
};

// Places of a layer's tensors; a bias at 0 is none.
struct LinearPlaces {
  size_t x, w, b, y;
};

inline LinearCall checkLinear(const Call& args, LinearPlaces at, bool turned) {
  const View &x = args[at.x], &w = args[at.w], &y = args.activations(at.y);
  EXPECT(args, isFloat(x.dtype) && isFloat(w.dtype), "input and weight of f32, f16 or bf16",
         x.describe() + " and " + w.describe());
  EXPECT(args, x.rank >= 1 && w.rank == 2 && y.rank == x.rank, "x [.., I], w [O, I] and y [.., O]",
         x.describe() + ", " + w.describe() + " and " + y.describe());
  int64_t k = x.last(), n = w.dims[turned ? 1 : 0], m = x.rows();
  EXPECT(args, w.dims[turned ? 0 : 1] == k,
         turned ? "a weight of [" + std::to_string(k) + ", O]"
                : "a weight of [O, " + std::to_string(k) + "]",
         w.describe());
  EXPECT(args, y.last() == n && y.rows() == m, "an output of [.., " + std::to_string(n) + "]",
         y.describe());
  if (at.b) {
    args.shaped(at.b, {n});
    args.floating(at.b);
  }
  return {m, n, k, at.b > 0, turned, y};
}

inline LinearCall linearCall(const Call& args) {
  EXPECT(args, args.count == 3 || args.count == 4, "3 or 4 tensors", std::to_string(args.count));
  args.counts(args.count, args.attrCount ? 1 : 0);
  bool biased = args.count == 4, turned = args.attrCount && args.integer(0, 0, 1) != 0;
  return checkLinear(args, {0, 1, biased ? size_t{2} : 0, biased ? size_t{3} : 2}, turned);
}

// What a result is made of is stored as the result is.
inline void checkInner(const Call& args, size_t y, size_t inner) {
  args.writable(inner);
  args.sameShape(y, inner);
  args.sameDType(y, inner);
}

// In the order of the attribute.
enum Activation { kReluOf, kSiluOf, kGeluOf, kGeluTanhOf, kActivationCount };

// x, w, (b) to y = f(x wᵀ + b), (and what f is taken of).
struct ActivatedCall {
  LinearCall linear;
  Activation activation;
  size_t inner;  // place of what f is taken of, 0 where it is not wanted
};

inline ActivatedCall activatedCall(const Call& args) {
  args.counts(args.count, 3);
  bool turned = args.integer(0, 0, 1) != 0;
  int64_t activation = args.integer(1, 0, kActivationCount - 1);
  size_t kept = static_cast<size_t>(args.integer(2, 0, 1));
  EXPECT(args, args.count == 3 + kept || args.count == 4 + kept,
         std::to_string(3 + kept) + " or " + std::to_string(4 + kept) + " tensors",
         std::to_string(args.count));
  size_t y = args.count - 1 - kept;
  LinearCall linear = checkLinear(args, {0, 1, y == 3 ? size_t{2} : 0, y}, turned);
  if (kept) checkInner(args, y, y + 1);
  return {linear, static_cast<Activation>(activation), kept ? y + 1 : 0};
}

// x, two weights, (their biases) to y = silu(gate) up, (and gate and up).
struct GatedCall {
  LinearCall gate, up;
  size_t inner;  // place of gate, before up; 0 where they are not wanted
};

inline GatedCall gatedCall(const Call& args) {
  args.counts(args.count, 2);
  bool turned = args.integer(0, 0, 1) != 0;
  size_t kept = 2 * static_cast<size_t>(args.integer(1, 0, 1));
  EXPECT(args, args.count == 4 + kept || args.count == 6 + kept,
         std::to_string(4 + kept) + " or " + std::to_string(6 + kept) + " tensors",
         std::to_string(args.count));
  size_t y = args.count - 1 - kept;
  bool biased = y == 5;
  args.sameShape(1, 2);
  LinearCall gate = checkLinear(args, {0, 1, biased ? size_t{3} : 0, y}, turned);
  LinearCall up = checkLinear(args, {0, 2, biased ? size_t{4} : 0, y}, turned);
  for (size_t i = y + 1; i < args.count; i++) checkInner(args, y, i);
  return {gate, up, kept ? y + 1 : 0};
}

}  // namespace lowrank

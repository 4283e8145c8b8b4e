// The calls of the optimizers' steps, and of the norm and the factor that clip gradients before.
#pragma once

#include <cmath>

#include "../call.h"

namespace lowrank {

// A gradient, then outputs shaped as it, from tensor `at` on.
inline void checkState(const Call& args, size_t at, size_t outputs) {
  args.floating(at);
  for (size_t i = at + 1; i <= at + outputs; i++) {
    args.sameShape(at, i);
    args.out(i);
  }
}

// The factor of clipFactor that a step may begin with, where it has one tensor more: at 1, else 0,
// the parameters begin.
inline size_t checkFactor(const Call& args, size_t tensors) {
  if (args.count == tensors) return 0;
  const View& factor = args.typed(0, DType::f32);
  EXPECT(args, factor.count == 1, "a factor of one element", factor.describe());
  return 1;
}

// Of a step, or null.
inline const float* factorOf(const Call& args, size_t first) {
  return first > 0 ? args[0].as<float>() : nullptr;
}

// A factor if there is one, g, p, m and v of each parameter, and the seven attributes as the fields
// of S, in the order of PyTorch's AdamW with decoupled weight decay (Loshchilov and Hutter).
template <class S>
S adamwStep(const Call& args) {
  EXPECT(args, args.count >= 4 && args.count % 4 <= 1, "g, p, m and v of each parameter",
         std::to_string(args.count) + " tensors");
  size_t first = checkFactor(args, args.count / 4 * 4);
  args.counts(args.count, 7);
  double lr = args.attrs[0], beta1 = args.attrs[1], beta2 = args.attrs[2], eps = args.attrs[3];
  double step = static_cast<double>(args.integer(5, 1, int64_t{1} << 53));
  for (size_t i = first; i < args.count; i += 4) checkState(args, i, 3);
  S s = {};
  s.decay = static_cast<float>(1 - lr * args.attrs[4]);
  s.beta1 = static_cast<float>(beta1);
  s.oneMinusBeta1 = static_cast<float>(1 - beta1);
  s.beta2 = static_cast<float>(beta2);
  s.oneMinusBeta2 = static_cast<float>(1 - beta2);
  s.stepSize = static_cast<float>(lr / (1 - std::pow(beta1, step)));
  s.rootCorrection = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step)));
  s.eps = static_cast<float>(eps);
  s.gradScale = static_cast<float>(args.attrs[6]);
  return s;
}

struct SgdStep {
  float lr, momentum, decay, gradScale;
  bool first;
};

// A factor if there is one, g, p and m.
inline SgdStep sgdStep(const Call& args) {
  args.counts(args.count == 4 ? 4 : 3, 5);
  checkState(args, checkFactor(args, 3), 2);
  bool first = args.integer(4, 0, 1) != 0;
  return {static_cast<float>(args.attrs[0]), static_cast<float>(args.attrs[1]),
          static_cast<float>(args.attrs[2]), static_cast<float>(args.attrs[3]), first};
}

// x of each tensor to y, a sum each; how many.
inline size_t checkSumSquares(const Call& args) {
  args.atLeast(2, 0);
  args.counts(args.count, 0);
  size_t n = args.count - 1;
  for (size_t i = 0; i < n; i++) args.floating(i);
  args.shaped(n, {static_cast<int64_t>(n)});
  args.out(n);
  return n;
}

// Sums of squares and numbers that must be finite to the factor, in the last tensor; the largest
// norm, 0 for any.
inline double clipLimit(const Call& args) {
  args.atLeast(2, 1);
  args.counts(args.count, 1);
  const View& sums = args.floating(0);
  EXPECT(args, sums.rank == 1, "sums of squares [n]", sums.describe());
  for (size_t i = 1; i < args.count; i++) {
    const View& x = args.floating(i);
    EXPECT(args, x.count == 1, "tensor " + std::to_string(i) + " of one element", x.describe());
  }
  args.out(args.count - 1);
  double limit = args.attrs[0];
  EXPECT(args, limit >= 0 && std::isfinite(limit), "a largest norm of 0 or more",
         std::to_string(limit));
  return limit;
}

}  // namespace lowrank

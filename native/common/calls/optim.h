// The calls of the optimizers' steps.
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

// g, p, m and v of each parameter, and the seven attributes as the fields of S, in the order of
// PyTorch's AdamW with decoupled weight decay (Loshchilov and Hutter).
template <class S>
S adamwStep(const Call& args) {
  EXPECT(args, args.count > 0 && args.count % 4 == 0, "g, p, m and v of each parameter",
         std::to_string(args.count) + " tensors");
  args.counts(args.count, 7);
  double lr = args.attrs[0], beta1 = args.attrs[1], beta2 = args.attrs[2], eps = args.attrs[3];
  double step = static_cast<double>(args.integer(5, 1, int64_t{1} << 53));
  for (size_t i = 0; i < args.count; i += 4) checkState(args, i, 3);
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

// g, p and m.
inline SgdStep sgdStep(const Call& args) {
  args.counts(3, 5);
  checkState(args, 0, 2);
  bool first = args.integer(4, 0, 1) != 0;
  return {static_cast<float>(args.attrs[0]), static_cast<float>(args.attrs[1]),
          static_cast<float>(args.attrs[2]), static_cast<float>(args.attrs[3]), first};
}

}  // namespace lowrank

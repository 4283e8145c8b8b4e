// Optimizer steps and sums of gradients, in place.
#include <cmath>

#include "kernels.h"

namespace lowrank {

namespace {

// Decoupled weight decay (Loshchilov and Hutter) in the order of PyTorch's AdamW.
void adamw(const Args& args) {
  args.counts(4, 7);
  Floats g = floats(args, 0);
  for (size_t i = 1; i < 4; i++) args.sameShape(0, i);
  float* p = args.out(1).as<float>();
  float* m = args.out(2).as<float>();
  float* v = args.out(3).as<float>();
  double lr = args.attrs[0], beta1 = args.attrs[1], beta2 = args.attrs[2], eps = args.attrs[3];
  double step = static_cast<double>(args.integer(5, 1, int64_t{1} << 53));
  AdamWStep s = {};
  s.decay = static_cast<float>(1 - lr * args.attrs[4]);
  s.beta1 = static_cast<float>(beta1);
  s.oneMinusBeta1 = static_cast<float>(1 - beta1);
  s.beta2 = static_cast<float>(beta2);
  s.oneMinusBeta2 = static_cast<float>(1 - beta2);
  s.stepSize = static_cast<float>(lr / (1 - std::pow(beta1, step)));
  s.rootCorrection = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step)));
  s.eps = static_cast<float>(eps);
  s.gradScale = static_cast<float>(args.attrs[6]);
  auto f = args.context.isa->adamw;
  args.context.ranges(args[0].count, Context::kGrain / 2,
                      [&](int64_t i, int64_t e, int) { f(g + i, p + i, m + i, v + i, &s, e - i); });
}

void sgd(const Args& args) {
  args.counts(3, 5);
  Floats g = floats(args, 0);
  args.sameShape(0, 1);
  args.sameShape(0, 2);
  float* p = args.out(1).as<float>();
  float* m = args.out(2).as<float>();
  float lr = static_cast<float>(args.attrs[0]), momentum = static_cast<float>(args.attrs[1]);
  float decay = static_cast<float>(args.attrs[2]), scale = static_cast<float>(args.attrs[3]);
  bool first = args.integer(4, 0, 1) != 0;
  const float* grads = g;
  // Captured by value, so that no store can change a setting and the loop becomes vectors.
  args.context.ranges(args[0].count, Context::kGrain, [=](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      float d = grads[i] * scale + decay * p[i];
      float moment = first ? d : momentum * m[i] + d;
      m[i] = moment;
      p[i] -= lr * moment;
    }
  });
}

void accumulate(const Args& args) {
  args.counts(2, 0);
  Floats x = floats(args, 0);
  args.sameShape(0, 1);
  float* y = args.out(1).as<float>();
  auto add = args.context.isa->binary[kAdd];
  args.context.ranges(args[0].count, Context::kGrain,
                      [&](int64_t i, int64_t e, int) { add(y + i, 1, x + i, 1, y + i, e - i); });
}

}  // namespace

void registerOptim(Registry& r) {
  r.push_back({"adamw", adamw});
  r.push_back({"sgd", sgd});
  r.push_back({"accumulate", accumulate});
}

}  // namespace lowrank

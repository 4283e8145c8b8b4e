// Optimizer steps and sums of gradients, in place.
#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace lowrank {

namespace {

// The seven attributes of a step, in the order of PyTorch's AdamW with decoupled weight decay
// (Loshchilov and Hutter).
AdamWStep stepOf(const Args& args) {
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
  return s;
}

// g, p, m, v of any number of parameters, which share the threads.
void adamwEach(const Args& args) {
  EXPECT(args, args.count > 0 && args.count % 4 == 0, "g, p, m and v of each parameter",
         std::to_string(args.count) + " tensors");
  args.counts(args.count, 7);
  AdamWStep s = stepOf(args);
  constexpr int64_t kGrain = Context::kGrain / 2;
  std::vector<Floats> grads;
  std::vector<int64_t> ends;  // of each parameter's pieces, counted through all of them
  grads.reserve(args.count / 4);
  for (size_t i = 0; i < args.count; i += 4) {
    grads.push_back(floats(args, i));
    for (size_t j = 1; j < 4; j++) {
      args.sameShape(i, i + j);
      args.out(i + j);
    }
    int64_t pieces = (args[i].count + kGrain - 1) / kGrain;
    ends.push_back(pieces + (ends.empty() ? 0 : ends.back()));
  }
  auto f = args.context.isa->adamw;
  args.context.ranges(ends.back(), 1, [&](int64_t piece, int64_t, int) {
    size_t at =
        static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), piece) - ends.begin());
    int64_t from = (piece - (at ? ends[at - 1] : 0)) * kGrain;
    int64_t n = std::min(kGrain, args[4 * at].count - from);
    f(grads[at] + from, args[4 * at + 1].as<float>() + from, args[4 * at + 2].as<float>() + from,
      args[4 * at + 3].as<float>() + from, &s, n);
  });
}

void adamw(const Args& args) {
  args.counts(4, 7);
  adamwEach(args);
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
  r.push_back({"adamwEach", adamwEach});
  r.push_back({"sgd", sgd});
  r.push_back({"accumulate", accumulate});
}

}  // namespace lowrank

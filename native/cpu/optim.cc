// Optimizer steps, in place.
#include "../common/calls/optim.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace lowrank {

namespace {

// g, p, m, v of any number of parameters, which share the threads.
void adamwEach(const Args& args) {
  AdamWStep s = adamwStep<AdamWStep>(args);
  constexpr int64_t kGrain = Context::kGrain / 2;
  std::vector<Floats> grads;
  std::vector<int64_t> ends;  // of each parameter's pieces, counted through all of them
  grads.reserve(args.count / 4);
  for (size_t i = 0; i < args.count; i += 4) {
    grads.push_back(floats(args, i));
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
  SgdStep s = sgdStep(args);
  Floats g = floats(args, 0);
  float *p = args[1].as<float>(), *m = args[2].as<float>();
  const float* grads = g;
  // Captured by value, so that no store can change a setting and the loop becomes vectors.
  args.context.ranges(args[0].count, Context::kGrain, [=](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      float d = grads[i] * s.gradScale + s.decay * p[i];
      float moment = s.first ? d : s.momentum * m[i] + d;
      m[i] = moment;
      p[i] -= s.lr * moment;
    }
  });
}

}  // namespace

void registerOptim(Registry& r) {
  r.push_back({"adamw", adamw});
  r.push_back({"adamwEach", adamwEach});
  r.push_back({"sgd", sgd});
}

}  // namespace lowrank

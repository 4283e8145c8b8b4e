// Elements by index along one axis (NumPy's take_along_axis), and the gradient.
#include "../common/calls/gather.h"

#include <algorithm>

#include "kernels.h"

namespace lowrank {

namespace {

void checkIndex(const Args& args, const Picks& p) {
  for (int64_t n = 0; n < p.count; n++) {
    EXPECT(args, p.index[n] >= 0 && p.index[n] < p.from,
           "indices from 0 to " + std::to_string(p.from - 1), std::to_string(p.index[n]));
  }
}

void gather(const Args& args) {
  Picks p = gatherPicks(args);
  checkIndex(args, p);
  byWord(dtypeSize(args[0].dtype), [&](auto word) {
    const auto* x = args[0].as<decltype(word)>();
    auto* y = args[2].as<decltype(word)>();
    args.context.rows(p.outer, p.to * p.inner, [&](int64_t from, int64_t to, int) {
      for (int64_t o = from; o < to; o++) {
        for (int64_t i = 0; i < p.to * p.inner; i++) {
          int64_t at = o * p.to * p.inner + i;
          y[at] = x[(o * p.from + p.index[at]) * p.inner + i % p.inner];
        }
      }
    });
  });
}

void gatherGrad(const Args& args) {
  Picks p = gatherGradPicks(args);
  checkIndex(args, p);
  Floats dy = floats(args, 1);
  float* dx = args[2].as<float>();
  args.context.rows(p.outer, (p.from + p.to) * p.inner, [&](int64_t from, int64_t to, int) {
    std::fill(dx + from * p.from * p.inner, dx + to * p.from * p.inner, 0.0f);
    for (int64_t o = from; o < to; o++) {
      for (int64_t i = 0; i < p.to * p.inner; i++) {
        int64_t at = o * p.to * p.inner + i;
        dx[(o * p.from + p.index[at]) * p.inner + i % p.inner] += dy[at];
      }
    }
  });
}

}  // namespace

void registerGather(Registry& r) {
  r.push_back({"gather", gather});
  r.push_back({"gather.grad", gatherGrad});
}

}  // namespace lowrank

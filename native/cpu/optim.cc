// Optimizer steps, in place, and what clips gradients before them.
#include "../common/calls/optim.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace lowrank {

namespace {

// Tensors cut into pieces of `grain` elements, counted through all of them, so that small and large
// ones share the threads.
class Pieces {
 public:
  explicit Pieces(int64_t grain) : grain_(grain) {}
  void add(int64_t count) {
    counts_.push_back(count);
    ends_.push_back(end() + (count + grain_ - 1) / grain_);
  }
  int64_t end() const { return ends_.empty() ? 0 : ends_.back(); }
  // One past the last piece of a tensor.
  int64_t end(size_t tensor) const { return ends_[tensor]; }

  struct Piece {
    size_t tensor;
    int64_t from, n;
  };
  Piece operator[](int64_t i) const {
    auto t = static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), i) - ends_.begin());
    int64_t from = (i - (t > 0 ? ends_[t - 1] : 0)) * grain_;
    return {t, from, std::min(grain_, counts_[t] - from)};
  }

 private:
  int64_t grain_;
  std::vector<int64_t> counts_, ends_;
};

// What a step's gradients are multiplied by; false where nothing may change.
bool clipped(const float* factor, float& gradScale) {
  if (!factor) return true;
  gradScale *= *factor;
  return !std::isnan(*factor);
}

void adamwEach(const Args& args) {
  AdamWStep s = adamwStep<AdamWStep>(args);
  size_t first = args.count % 4;
  if (!clipped(factorOf(args, first), s.gradScale)) return;
  Pieces pieces(Context::kGrain / 2);
  std::vector<Floats> grads;
  grads.reserve(args.count / 4);
  for (size_t i = first; i < args.count; i += 4) {
    grads.push_back(floats(args, i));
    pieces.add(args[i].count);
  }
  auto f = args.context.isa->adamw;
  args.context.ranges(pieces.end(), 1, [&](int64_t i, int64_t, int) {
    auto [t, from, n] = pieces[i];
    const View* state = &args[first + 4 * t + 1];
    f(grads[t] + from, state[0].as<float>() + from, state[1].as<float>() + from,
      state[2].as<float>() + from, &s, n);
  });
}

void adamw(const Args& args) {
  args.counts(args.count == 5 ? 5 : 4, 7);
  adamwEach(args);
}

void sgd(const Args& args) {
  SgdStep s = sgdStep(args);
  size_t at = args.count - 3;
  if (!clipped(factorOf(args, at), s.gradScale)) return;
  Floats g = floats(args, at);
  float *p = args[at + 1].as<float>(), *m = args[at + 2].as<float>();
  const float* grads = g;
  // Captured by value, so that no store can change a setting and the loop becomes vectors.
  args.context.ranges(args[at].count, Context::kGrain, [=](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      float d = grads[i] * s.gradScale + s.decay * p[i];
      float moment = s.first ? d : s.momentum * m[i] + d;
      m[i] = moment;
      p[i] -= s.lr * moment;
    }
  });
}

// Pieces of fixed size, added in order.
void sumSquares(const Args& args) {
  size_t n = checkSumSquares(args);
  Pieces pieces(Context::kGrain);
  std::vector<Floats> x;
  x.reserve(n);
  for (size_t i = 0; i < n; i++) {
    x.push_back(floats(args, i));
    pieces.add(args[i].count);
  }
  Workspace held(args.context.memory, static_cast<uint64_t>(pieces.end()) * sizeof(double));
  double* part = held.as<double>();
  auto f = args.context.isa->sumSquares;
  args.context.ranges(pieces.end(), 1, [&](int64_t i, int64_t, int) {
    auto [t, from, count] = pieces[i];
    part[i] = f(x[t] + from, count);
  });
  float* y = args[n].as<float>();
  for (size_t t = 0, at = 0; t < n; t++) {
    double total = 0;
    for (; at < static_cast<size_t>(pieces.end(t)); at++) total += part[at];
    y[t] = static_cast<float>(total);
  }
}

// As PyTorch's clip_grad_norm_.
void clipFactor(const Args& args) {
  double limit = clipLimit(args), total = 0;
  Floats sums = floats(args, 0);
  for (int64_t i = 0; i < args[0].count; i++) total += sums[i];
  double norm = std::sqrt(total);
  bool finite = std::isfinite(norm);
  for (size_t i = 1; i + 1 < args.count; i++) finite = finite && std::isfinite(floats(args, i)[0]);
  double factor = limit > 0 && norm > limit ? limit / (norm + 1e-6) : 1;
  *args[args.count - 1].as<float>() = finite ? static_cast<float>(factor) : NAN;
}

}  // namespace

void registerOptim(Registry& r) {
  r.push_back({"adamw", adamw});
  r.push_back({"adamwEach", adamwEach});
  r.push_back({"sgd", sgd});
  r.push_back({"sumSquares", sumSquares});
  r.push_back({"clipFactor", clipFactor});
}

}  // namespace lowrank

// Cross-entropy with label smoothing and an ignored label.
#include <algorithm>
#include <cmath>

#include "../common/calls/rows.h"
#include "kernels.h"

namespace lowrank {

namespace {

LossRows checkedRows(const Args& args, bool gradient) {
  LossRows l = lossRows(args, gradient);
  for (int64_t i = 0; i < l.n; i++) {
    EXPECT(
        args, l.labels[i] == l.ignore || (l.labels[i] >= 0 && l.labels[i] < l.v),
        "labels below " + std::to_string(l.v) + " or the ignored one, " + std::to_string(l.ignore),
        std::to_string(l.labels[i]) + " at row " + std::to_string(i));
  }
  return l;
}

// -(1-e) logp[label] - e/V sum logp, with logp = x - top - log sum exp(x - top)
void crossEntropy(const Args& args) {
  LossRows l = checkedRows(args, false);
  Floats x = floats(args, 0);
  const IsaTable& isa = *args.context.isa;
  args.context.rows(l.n, l.v, [&](int64_t from, int64_t to, int) {
    for (int64_t r = from; r < to; r++) {
      l.out[r] = 0;
      if (l.labels[r] == l.ignore) continue;
      const float* row = x + r * l.v;
      float top = isa.maxOf(row, l.v);
      double logSum = std::log(isa.expSum(row, 1.0f, top, nullptr, l.v));
      double value = (1 - l.smoothing) * (logSum - (static_cast<double>(row[l.labels[r]]) - top));
      if (l.smoothing > 0) {
        double v = static_cast<double>(l.v);
        value += l.smoothing / v * (v * (logSum + top) - isa.sum(row, l.v));
      }
      l.out[r] = static_cast<float>(value);
    }
  });
}

// dx = dloss (softmax - (1-e) onehot - e/V)
void crossEntropyGrad(const Args& args) {
  LossRows l = checkedRows(args, true);
  Floats x = floats(args, 0), dloss = floats(args, 2);
  const IsaTable& isa = *args.context.isa;
  args.context.rows(l.n, l.v, [&](int64_t from, int64_t to, int) {
    for (int64_t r = from; r < to; r++) {
      float* out = l.out + r * l.v;
      if (l.labels[r] == l.ignore) {
        std::fill(out, out + l.v, 0.0f);
        continue;
      }
      const float* row = x + r * l.v;
      double sum = isa.expSum(row, 1.0f, isa.maxOf(row, l.v), out, l.v);
      double d = dloss[r];
      isa.affine(out, static_cast<float>(d / sum),
                 static_cast<float>(-d * l.smoothing / static_cast<double>(l.v)), out, l.v);
      out[l.labels[r]] -= static_cast<float>(d * (1 - l.smoothing));
    }
  });
}

}  // namespace

void registerLoss(Registry& r) {
  r.push_back({"crossEntropy", crossEntropy});
  r.push_back({"crossEntropy.grad", crossEntropyGrad});
}

}  // namespace lowrank

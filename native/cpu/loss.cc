// Cross-entropy with label smoothing and an ignored label.
#include <algorithm>
#include <cmath>

#include "../common/calls/rows.h"
#include "kernels.h"

namespace lowrank {

namespace {

void checkLabels(const Args& args, const LossRows& l) {
  for (int64_t i = 0; i < l.n; i++) {
    EXPECT(
        args, l.labels[i] == l.ignore || (l.labels[i] >= 0 && l.labels[i] < l.v),
        "labels below " + std::to_string(l.v) + " or the ignored one, " + std::to_string(l.ignore),
        std::to_string(l.labels[i]) + " at row " + std::to_string(i));
  }
}

// -(1-e) logp[label] - e/V sum logp, with logp = x - top - log sum exp(x - top); total: the sum of
// x, which counts where e > 0.
float lossOf(const LossRows& l, double logit, double top, double sum, double total) {
  double logSum = std::log(sum);
  double value = (1 - l.smoothing) * (logSum - (logit - top));
  if (l.smoothing > 0) {
    double v = static_cast<double>(l.v);
    value += l.smoothing / v * (v * (logSum + top) - total);
  }
  return static_cast<float>(value);
}

// dx = d (softmax - (1-e) onehot - e/V), where a row is exp(x - top)
void gradOf(const IsaTable& isa, const LossRows& l, double d, double sum, int32_t label,
            float* row) {
  isa.affine(row, static_cast<float>(d / sum),
             static_cast<float>(-d * l.smoothing / static_cast<double>(l.v)), row, l.v);
  row[label] -= static_cast<float>(d * (1 - l.smoothing));
}

void crossEntropy(const Args& args) {
  LossRows l = lossRows(args, false);
  checkLabels(args, l);
  Floats x = floats(args, 0);
  const IsaTable& isa = *args.context.isa;
  args.context.rows(l.n, l.v, [&](int64_t from, int64_t to, int) {
    for (int64_t r = from; r < to; r++) {
      l.out[r] = 0;
      if (l.labels[r] == l.ignore) continue;
      const float* row = x + r * l.v;
      float top = isa.maxOf(row, l.v);
      double sum = isa.expSum(row, 1.0f, top, nullptr, l.v);
      l.out[r] = lossOf(l, row[l.labels[r]], top, sum, l.smoothing > 0 ? isa.sum(row, l.v) : 0);
    }
  });
}

void crossEntropyGrad(const Args& args) {
  LossRows l = lossRows(args, true);
  checkLabels(args, l);
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
      gradOf(isa, l, dloss[r], sum, l.labels[r], out);
    }
  });
}

// The exponentials are computed once, in the logits' place, and a row stays in cache meanwhile.
void crossEntropyWithGrad(const Args& args) {
  LossAndGrad both = lossAndGrad(args);
  const LossRows& l = both.rows;
  checkLabels(args, l);
  const IsaTable& isa = *args.context.isa;
  args.context.rows(l.n, l.v, [&](int64_t from, int64_t to, int) {
    for (int64_t r = from; r < to; r++) {
      float* row = l.out + r * l.v;
      int32_t label = l.labels[r];
      if (label == l.ignore) {
        both.loss[r] = 0;
        std::fill(row, row + l.v, 0.0f);
        continue;
      }
      float top = isa.maxOf(row, l.v), logit = row[label];
      double total = l.smoothing > 0 ? isa.sum(row, l.v) : 0;
      double sum = isa.expSum(row, 1.0f, top, row, l.v);
      both.loss[r] = lossOf(l, logit, top, sum, total);
      gradOf(isa, l, both.factor, sum, label, row);
    }
  });
}

}  // namespace

void registerLoss(Registry& r) {
  r.push_back({"crossEntropy", crossEntropy});
  r.push_back({"crossEntropy.grad", crossEntropyGrad});
  r.push_back({"crossEntropy.withGrad", crossEntropyWithGrad});
}

}  // namespace lowrank

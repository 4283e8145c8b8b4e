// Cross-entropy with label smoothing and an ignored label.
#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace lowrank {

namespace {

struct Loss {
  int64_t n, v, ignore;
  double smoothing;
  const int32_t* labels;
};

Loss check(const Args& args, size_t labels, size_t perRow) {
  const View& logits = args[0];
  EXPECT(args, logits.rank == 2, "logits [N, V]", logits.describe());
  Loss l = {};
  l.n = logits.dims[0];
  l.v = logits.dims[1];
  args.shaped(labels, {l.n});
  args.shaped(perRow, {l.n});
  l.labels = args.typed(labels, DType::i32).as<int32_t>();
  l.ignore = args.integer(0, INT32_MIN, INT32_MAX);
  l.smoothing = args.attrs[1];
  EXPECT(args, l.smoothing >= 0 && l.smoothing <= 1, "smoothing from 0 to 1",
         std::to_string(l.smoothing));
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
  args.counts(3, 2);
  Floats x = floats(args, 0);
  Loss l = check(args, 1, 2);
  float* loss = args.out(2).as<float>();
  const IsaTable& isa = *args.context.isa;
  args.context.rows(l.n, l.v, [&](int64_t from, int64_t to, int) {
    for (int64_t r = from; r < to; r++) {
      loss[r] = 0;
      if (l.labels[r] == l.ignore) continue;
      const float* row = x + r * l.v;
      float top = isa.maxOf(row, l.v);
      double logSum = std::log(isa.expSum(row, 1.0f, top, nullptr, l.v));
      double value = (1 - l.smoothing) * (logSum - (static_cast<double>(row[l.labels[r]]) - top));
      if (l.smoothing > 0) {
        double v = static_cast<double>(l.v);
        value += l.smoothing / v * (v * (logSum + top) - isa.sum(row, l.v));
      }
      loss[r] = static_cast<float>(value);
    }
  });
}

// dx = dloss (softmax - (1-e) onehot - e/V)
void crossEntropyGrad(const Args& args) {
  args.counts(4, 2);
  Floats x = floats(args, 0), dloss = floats(args, 2);
  Loss l = check(args, 1, 2);
  args.sameShape(0, 3);
  float* dx = args.out(3).as<float>();
  const IsaTable& isa = *args.context.isa;
  args.context.rows(l.n, l.v, [&](int64_t from, int64_t to, int) {
    for (int64_t r = from; r < to; r++) {
      float* out = dx + r * l.v;
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

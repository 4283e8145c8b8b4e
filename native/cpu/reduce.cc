// Sums over any axes, and largest elements along one.
#include "../common/calls/reduce.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace lowrank {

namespace {

int64_t offsetOf(int64_t index, int n, const AxisGroup& g) {
  int64_t at = 0;
  for (int d = n - 1; d >= 0; d--) {
    at += index % g.dims[d] * g.steps[d];
    index /= g.dims[d];
  }
  return at;
}

// The innermost axis is summed: one row sum after the other for each output.
void sumRows(const Args& args, const SumAxes& g, const float* x, float* y, int64_t outputs) {
  int64_t width = g.reduced.rank ? g.reduced.dims[g.reduced.rank - 1] : 1;
  int64_t times = g.reduced.product(g.reduced.rank - 1);
  auto sum = args.context.isa->sum;
  args.context.rows(outputs, width * times, [&](int64_t from, int64_t to, int) {
    for (int64_t o = from; o < to; o++) {
      const float* at = x + offsetOf(o, g.kept.rank, g.kept);
      double total = 0;
      for (int64_t t = 0; t < times; t++) {
        total += sum(at + offsetOf(t, g.reduced.rank - 1, g.reduced), width);
      }
      y[o] = static_cast<float>(total);
    }
  });
}

// The innermost axis is kept: rows are added into blocks of columns.
void sumColumns(const Args& args, const SumAxes& g, const float* x, float* y, int64_t outputs) {
  constexpr int64_t kBlock = 64;
  int64_t width = g.kept.dims[g.kept.rank - 1];
  int64_t outer = outputs / width, blocks = (width + kBlock - 1) / kBlock;
  int64_t times = g.reduced.product(g.reduced.rank);
  // Rows are those of the last axis that is reduced; with none each is summed by itself.
  int outerReduced = std::max(0, g.reduced.rank - 1);
  int64_t rows = g.reduced.rank ? g.reduced.dims[outerReduced] : 1;
  int64_t step = g.reduced.rank ? g.reduced.steps[outerReduced] : 0;
  auto addTo = args.context.isa->addTo;
  args.context.rows(outer * blocks, kBlock * times, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      int64_t o = i / blocks, c = i % blocks * kBlock, n = std::min(kBlock, width - c);
      const float* at = x + offsetOf(o, g.kept.rank - 1, g.kept) + c;
      double acc[kBlock] = {};
      for (int64_t t = 0; t < times / rows; t++) {
        addTo(at + offsetOf(t, outerReduced, g.reduced), rows, step, acc, n);
      }
      for (int64_t j = 0; j < n; j++) y[o * width + c + j] = static_cast<float>(acc[j]);
    }
  });
}

void sum(const Args& args) {
  SumAxes g = sumAxes(args);
  Floats x = floats(args, 0);
  float* y = args[1].as<float>();
  int64_t outputs = args[1].count;
  if (outputs == 0) return;
  if (args[0].count == 0) {
    std::fill(y, y + outputs, 0.0f);
  } else if (g.innerReduced || g.kept.rank == 0) {
    sumRows(args, g, x, y, outputs);
  } else {
    sumColumns(args, g, x, y, outputs);
  }
}

template <bool Values>
void largest(const Args& args) {
  Largest l = largestOf(args, Values);
  Floats x = floats(args, 0);
  if (l.count == 0) return;
  AroundAxis a = l.a;
  const IsaTable& isa = *args.context.isa;
  args.context.rows(l.count, a.n, [&](int64_t from, int64_t to, int) {
    for (int64_t o = from; o < to; o++) {
      const float* at = x + o / a.inner * a.n * a.inner + o % a.inner;
      if (a.inner == 1) {
        int64_t place = isa.argMax(at, a.n);
        if (l.y) l.y[o] = at[place];
        l.index[o] = static_cast<int32_t>(place);
        continue;
      }
      float best = at[0];
      int64_t place = 0;
      for (int64_t i = 1; i < a.n && !std::isnan(best); i++) {
        float v = at[i * a.inner];
        if (v > best || std::isnan(v)) {
          best = v;
          place = i;
        }
      }
      if (l.y) l.y[o] = best;
      l.index[o] = static_cast<int32_t>(place);
    }
  });
}

void maxGrad(const Args& args) {
  AroundAxis a = maxGradAxis(args);
  Floats dy = floats(args, 1);
  const int32_t* index = args[0].as<int32_t>();
  float* dx = args[2].as<float>();
  int64_t n = args[0].count;
  for (int64_t o = 0; o < n; o++) {
    EXPECT(args, index[o] >= 0 && index[o] < a.n, "an index below " + std::to_string(a.n),
           std::to_string(index[o]));
  }
  std::fill(dx, dx + args[2].count, 0.0f);
  for (int64_t o = 0; o < n; o++) {
    dx[(o / a.inner * a.n + index[o]) * a.inner + o % a.inner] = dy[o];
  }
}

}  // namespace

void registerReduce(Registry& r) {
  r.push_back({"sum", sum});
  r.push_back({"max", largest<true>});
  r.push_back({"max.grad", maxGrad});
  r.push_back({"argmax", largest<false>});
}

}  // namespace lowrank

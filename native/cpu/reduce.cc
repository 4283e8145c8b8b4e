// Sums over any axes, largest elements along one, and the sum of squares for clipping.
#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace lowrank {

namespace {

// Axes in order of the tensor, neighbours of one kind joined: kept or reduced.
struct Groups {
  int kept = 0, reduced = 0;
  int64_t keptDims[kMaxRank], keptSteps[kMaxRank];
  int64_t reducedDims[kMaxRank], reducedSteps[kMaxRank];
  bool innerReduced = false;
};

Groups group(const View& x, const bool* reduce) {
  Groups g;
  int64_t step[kMaxRank];
  rowMajor(x, step);
  int before = -1;  // kind of the group that is being extended
  for (int d = 0; d < x.rank; d++) {
    if (x.dims[d] == 1) continue;
    int kind = reduce[d] ? 1 : 0;
    int& n = kind ? g.reduced : g.kept;
    int64_t* dims = kind ? g.reducedDims : g.keptDims;
    int64_t* steps = kind ? g.reducedSteps : g.keptSteps;
    if (kind == before) {
      dims[n - 1] *= x.dims[d];
      steps[n - 1] = step[d];
    } else {
      dims[n] = x.dims[d];
      steps[n] = step[d];
      n++;
    }
    before = kind;
  }
  g.innerReduced = before == 1;
  return g;
}

int64_t offsetOf(int64_t index, int n, const int64_t* dims, const int64_t* steps) {
  int64_t at = 0;
  for (int d = n - 1; d >= 0; d--) {
    at += index % dims[d] * steps[d];
    index /= dims[d];
  }
  return at;
}

int64_t productOf(int n, const int64_t* dims) {
  int64_t p = 1;
  for (int d = 0; d < n; d++) p *= dims[d];
  return p;
}

// The innermost axis is summed: one row sum after the other for each output.
void sumRows(const Args& args, const Groups& g, const float* x, float* y, int64_t outputs) {
  int64_t width = g.reduced ? g.reducedDims[g.reduced - 1] : 1;
  int64_t times = productOf(std::max(0, g.reduced - 1), g.reducedDims);
  auto sum = args.context.isa->sum;
  args.context.rows(outputs, width * times, [&](int64_t from, int64_t to, int) {
    for (int64_t o = from; o < to; o++) {
      const float* at = x + offsetOf(o, g.kept, g.keptDims, g.keptSteps);
      double total = 0;
      for (int64_t t = 0; t < times; t++) {
        total += sum(at + offsetOf(t, g.reduced - 1, g.reducedDims, g.reducedSteps), width);
      }
      y[o] = static_cast<float>(total);
    }
  });
}

// The innermost axis is kept: rows are added into blocks of columns.
void sumColumns(const Args& args, const Groups& g, const float* x, float* y, int64_t outputs) {
  constexpr int64_t kBlock = 64;
  int64_t width = g.keptDims[g.kept - 1];
  int64_t outer = outputs / width, blocks = (width + kBlock - 1) / kBlock;
  int64_t times = productOf(g.reduced, g.reducedDims);
  // Rows are those of the last axis that is reduced; with none each is summed by itself.
  int outerReduced = std::max(0, g.reduced - 1);
  int64_t rows = g.reduced ? g.reducedDims[outerReduced] : 1;
  int64_t step = g.reduced ? g.reducedSteps[outerReduced] : 0;
  auto addTo = args.context.isa->addTo;
  args.context.rows(outer * blocks, kBlock * times, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      int64_t o = i / blocks, c = i % blocks * kBlock, n = std::min(kBlock, width - c);
      const float* at = x + offsetOf(o, g.kept - 1, g.keptDims, g.keptSteps) + c;
      double acc[kBlock] = {};
      for (int64_t t = 0; t < times / rows; t++) {
        addTo(at + offsetOf(t, outerReduced, g.reducedDims, g.reducedSteps), rows, step, acc, n);
      }
      for (int64_t j = 0; j < n; j++) y[o * width + c + j] = static_cast<float>(acc[j]);
    }
  });
}

void sum(const Args& args) {
  args.atLeast(2, 0);
  EXPECT(args, args.count == 2, "2 tensors", std::to_string(args.count));
  const View& x = args[0];
  bool reduce[kMaxRank] = {};
  for (size_t i = 0; i < args.attrCount; i++) {
    int axis = args.axis(i, x.rank);
    EXPECT(args, !reduce[axis], "each axis once", "axis " + std::to_string(axis) + " twice");
    reduce[axis] = true;
  }
  Floats in = floats(args, 0);
  View want = x;
  want.rank = 0;
  for (int d = 0; d < x.rank; d++) {
    if (!reduce[d]) want.dims[want.rank++] = x.dims[d];
  }
  EXPECT(args, want.sameShape(args[1]), "an output as " + want.describe(), args[1].describe());
  float* y = args.out(1).as<float>();
  if (args[1].count == 0) return;
  if (x.count == 0) {
    std::fill(y, y + args[1].count, 0.0f);
    return;
  }
  Groups g = group(x, reduce);
  if (g.innerReduced || g.kept == 0) {
    sumRows(args, g, in, y, args[1].count);
  } else {
    sumColumns(args, g, in, y, args[1].count);
  }
}

struct Axis {
  int64_t outer, n, inner;
};

Axis axisOf(const Args& args, size_t full, size_t reducedTensor) {
  const View& x = args[full];
  int axis = args.axis(0, x.rank);
  View want = x;
  want.rank = 0;
  for (int d = 0; d < x.rank; d++) {
    if (d != axis) want.dims[want.rank++] = x.dims[d];
  }
  EXPECT(args, want.sameShape(args[reducedTensor]),
         "tensor " + std::to_string(reducedTensor) + " as " + want.describe(),
         args[reducedTensor].describe());
  return {x.product(0, axis), x.dims[axis], x.product(axis + 1, x.rank)};
}

// The first largest; the first NaN is larger than everything.
void largest(const Args& args, const float* x, const Axis& a, float* y, int32_t* index) {
  EXPECT(args, a.n > 0, "an axis with elements", args[0].describe());
  EXPECT(args, a.n <= INT32_MAX, "an axis whose places fit i32", args[0].describe());
  const IsaTable& isa = *args.context.isa;
  args.context.rows(a.outer * a.inner, a.n, [&](int64_t from, int64_t to, int) {
    for (int64_t o = from; o < to; o++) {
      const float* at = x + o / a.inner * a.n * a.inner + o % a.inner;
      if (a.inner == 1) {
        int64_t place = isa.argMax(at, a.n);
        if (y) y[o] = at[place];
        index[o] = static_cast<int32_t>(place);
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
      if (y) y[o] = best;
      index[o] = static_cast<int32_t>(place);
    }
  });
}

void max(const Args& args) {
  args.counts(3, 1);
  Floats x = floats(args, 0);
  args.sameShape(1, 2);
  Axis a = axisOf(args, 0, 1);
  float* y = args.out(1).as<float>();
  int32_t* index = args.out(2, DType::i32).as<int32_t>();
  if (args[1].count > 0) largest(args, x, a, y, index);
}

void argmax(const Args& args) {
  args.counts(2, 1);
  Floats x = floats(args, 0);
  Axis a = axisOf(args, 0, 1);
  int32_t* index = args.out(1, DType::i32).as<int32_t>();
  if (args[1].count > 0) largest(args, x, a, nullptr, index);
}

void maxGrad(const Args& args) {
  args.counts(3, 1);
  const int32_t* index = args.typed(0, DType::i32).as<int32_t>();
  Floats dy = floats(args, 1);
  args.sameShape(0, 1);
  Axis a = axisOf(args, 2, 0);
  float* dx = args.out(2).as<float>();
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

// Blocks of fixed size, added in order.
void sumSquares(const Args& args) {
  args.counts(2, 0);
  Floats x = floats(args, 0);
  const View& y = args.out(1);
  EXPECT(args, y.count == 1, "an output of one element", y.describe());
  int64_t n = args[0].count, blocks = (n + Context::kGrain - 1) / Context::kGrain;
  Workspace held(args.context.memory, static_cast<uint64_t>(blocks) * sizeof(double));
  double* part = held.as<double>();
  auto f = args.context.isa->sumSquares;
  args.context.ranges(n, Context::kGrain, [&](int64_t i, int64_t e, int) {
    part[i / Context::kGrain] = f(x + i, e - i);
  });
  double total = 0;
  for (int64_t b = 0; b < blocks; b++) total += part[b];
  *y.as<float>() = static_cast<float>(total);
}

}  // namespace

void registerReduce(Registry& r) {
  r.push_back({"sum", sum});
  r.push_back({"max", max});
  r.push_back({"max.grad", maxGrad});
  r.push_back({"argmax", argmax});
  r.push_back({"sumSquares", sumSquares});
}

}  // namespace lowrank

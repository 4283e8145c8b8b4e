// The calls that reduce axes: sums and largest elements.
#pragma once

#include "../axes.h"
#include "../call.h"

namespace lowrank {

// x without some of its axes.
inline View without(const View& x, const bool* dropped) {
  View kept = x;
  kept.rank = 0;
  for (int d = 0; d < x.rank; d++) {
    if (!dropped[d]) kept.dims[kept.rank++] = x.dims[d];
  }
  return kept;
}

// Axes in order of the tensor, and how far each moves.
struct AxisGroup {
  int rank = 0;
  int64_t dims[kMaxRank], steps[kMaxRank];
  // Elements of the first n axes.
  int64_t product(int n) const {
    int64_t p = 1;
    for (int d = 0; d < n; d++) p *= dims[d];
    return p;
  }
};

// Axes longer than one, neighbours of one kind joined: kept or reduced.
struct SumAxes {
  AxisGroup kept, reduced;
  bool innerReduced = false;
};

inline SumAxes sumAxes(const Call& args) {
  args.atLeast(2, 0);
  EXPECT(args, args.count == 2, "2 tensors", std::to_string(args.count));
  const View& x = args[0];
  bool reduce[kMaxRank] = {};
  for (size_t i = 0; i < args.attrCount; i++) {
    int axis = args.axis(i, x.rank);
    EXPECT(args, !reduce[axis], "each axis once", "axis " + std::to_string(axis) + " twice");
    reduce[axis] = true;
  }
  args.floating(0);
  View want = without(x, reduce);
  EXPECT(args, want.sameShape(args[1]), "an output as " + want.describe(), args[1].describe());
  args.out(1);
  SumAxes s;
  int64_t step[kMaxRank];
  rowMajor(x, step);
  int before = -1;  // kind of the group that is being extended
  for (int d = 0; d < x.rank; d++) {
    if (x.dims[d] == 1) continue;
    int kind = reduce[d] ? 1 : 0;
    AxisGroup& g = kind ? s.reduced : s.kept;
    if (kind != before) g.dims[g.rank++] = 1;
    g.dims[g.rank - 1] *= x.dims[d];
    g.steps[g.rank - 1] = step[d];
    before = kind;
  }
  s.innerReduced = before == 1;
  return s;
}

// A tensor [outer, n, inner] around the axis.
struct AroundAxis {
  int64_t outer, n, inner;
};

// Of tensor `full`, where tensor `reduced` is shaped as it without the axis.
inline AroundAxis aroundAxis(const Call& args, size_t full, size_t reduced) {
  const View& x = args[full];
  int axis = args.axis(0, x.rank);
  bool dropped[kMaxRank] = {};
  dropped[axis] = true;
  View want = without(x, dropped);
  EXPECT(args, want.sameShape(args[reduced]),
         "tensor " + std::to_string(reduced) + " as " + want.describe(), args[reduced].describe());
  return {x.product(0, axis), x.dims[axis], x.product(axis + 1, x.rank)};
}

struct Largest {
  AroundAxis a;
  int64_t count;  // outputs
  float* y;       // null where only places are asked for
  int32_t* index;
};

// The first largest; the first NaN is larger than everything.
inline Largest largestOf(const Call& args, bool values) {
  args.counts(values ? 3 : 2, 1);
  const View& x = args.floating(0);
  if (values) args.sameShape(1, 2);
  AroundAxis a = aroundAxis(args, 0, 1);
  float* y = values ? args.out(1).as<float>() : nullptr;
  const View& index = args.out(values ? 2 : 1, DType::i32);
  if (index.count > 0) {
    EXPECT(args, a.n > 0, "an axis with elements", x.describe());
    EXPECT(args, a.n <= INT32_MAX, "an axis whose places fit i32", x.describe());
  }
  return {a, index.count, y, index.as<int32_t>()};
}

// index, dy and dx.
inline AroundAxis maxGradAxis(const Call& args) {
  args.counts(3, 1);
  args.typed(0, DType::i32);
  args.floating(1);
  args.sameShape(0, 1);
  AroundAxis a = aroundAxis(args, 2, 0);
  args.out(2);
  return a;
}

}  // namespace lowrank

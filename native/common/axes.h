// Axes of tensors and how far each moves, in elements.
#pragma once

#include "view.h"

namespace lowrank {

// Row-major steps of a shape.
inline void rowMajor(const View& v, int64_t* steps) {
  int64_t step = 1;
  for (int d = v.rank - 1; d >= 0; d--) {
    steps[d] = step;
    step *= v.dims[d];
  }
}

// Steps of x laid over y's shape, 0 where it repeats; false where it does not fit.
inline bool stepsOver(const View& x, const View& y, int64_t* steps) {
  if (x.rank > y.rank) return false;
  int64_t step = 1;
  for (int d = y.rank - 1, s = x.rank - 1; d >= 0; d--, s--) {
    int64_t n = s >= 0 ? x.dims[s] : 1;
    if (n != 1 && n != y.dims[d]) return false;
    steps[d] = n == 1 ? 0 : step;
    step *= n;
  }
  return true;
}

// Axes that two tensors share, and the steps of both.
struct AxisPairs {
  int rank;
  int64_t count;  // elements
  int64_t dims[kMaxRank], a[kMaxRank], b[kMaxRank];
};

// Axes of one dropped, and neighbours joined that step evenly in both.
inline AxisPairs joined(const int64_t* dims, int rank, const int64_t* a, const int64_t* b) {
  AxisPairs p = {};
  p.count = 1;
  for (int d = 0; d < rank; d++) {
    p.count *= dims[d];
    if (dims[d] == 1) continue;
    int last = p.rank - 1;
    if (last >= 0 && p.a[last] == a[d] * dims[d] && p.b[last] == b[d] * dims[d]) {
      p.dims[last] *= dims[d];
    } else {
      last = p.rank++;
      p.dims[last] = dims[d];
    }
    p.a[last] = a[d];
    p.b[last] = b[d];
  }
  return p;
}

}  // namespace lowrank

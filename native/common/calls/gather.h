// The calls that pick elements by index along one axis.
#pragma once

#include "../call.h"

namespace lowrank {

// Tensors [outer, from or to, inner]: `from` of the source axis, `to` of the index axis.
struct Picks {
  int64_t outer, from, to, inner;
  int64_t count;  // of indices
  const int32_t* index;
};

inline Picks picksOf(const Call& args, size_t index, size_t source, size_t picked) {
  args.counts(3, 1);
  const View &i = args.typed(index, DType::i32), &x = args[source];
  int axis = args.axis(0, x.rank);
  EXPECT(args, i.rank == x.rank, "an index of as many axes as " + x.describe(), i.describe());
  for (int d = 0; d < x.rank; d++) {
    EXPECT(args, d == axis || i.dims[d] == x.dims[d], "an index that matches off the axis",
           i.describe());
  }
  args.sameShape(index, picked);
  return {x.product(0, axis),          x.dims[axis], i.dims[axis],
          x.product(axis + 1, x.rank), i.count,      i.as<int32_t>()};
}

// x and index to y.
inline Picks gatherPicks(const Call& args) {
  Picks p = picksOf(args, 1, 0, 2);
  EXPECT(args, args[0].dtype == args[2].dtype, "an output of the input's dtype",
         args[2].describe());
  args.writable(2);
  return p;
}

// index and dy to dx.
inline Picks gatherGradPicks(const Call& args) {
  Picks p = picksOf(args, 0, 2, 1);
  args.floating(1);
  args.out(2);
  return p;
}

// f(T()) with an unsigned T of so many bytes, up to eight.
template <class F>
void byWord(size_t size, F f) {
  switch (size) {
    case 1:
      return f(uint8_t());
    case 2:
      return f(uint16_t());
    case 4:
      return f(uint32_t());
    default:
      return f(uint64_t());
  }
}

}  // namespace lowrank

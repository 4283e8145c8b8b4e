// The calls that move data: what lies where.
#pragma once

#include <cmath>
#include <cstdint>

#include "../axes.h"
#include "../call.h"

namespace lowrank {

// Elements to copy between strided tensors; `from` may repeat, with steps of 0.
struct Block {
  char* to;
  const char* from;
  size_t size;          // of an element, in bytes
  const int64_t* dims;  // of the call's tensors
  int rank;
  int64_t toSteps[kMaxRank], fromSteps[kMaxRank];
};

inline Block blockOf(const View& to, const View& from, const View& shape) {
  Block b = {to.data, from.data, dtypeSize(to.dtype), shape.dims, shape.rank, {}, {}};
  rowMajor(to, b.toSteps);
  rowMajor(from, b.fromSteps);
  return b;
}

inline Block permuteBlock(const Call& args) {
  args.atLeast(2, 0);
  const View &x = args[0], &y = args.writable(1);
  args.counts(2, static_cast<size_t>(x.rank));
  args.sameDType(0, 1);
  EXPECT(args, y.rank == x.rank, "an output of as many axes", y.describe());
  Block b = blockOf(y, x, y);
  int64_t steps[kMaxRank];
  bool used[kMaxRank] = {};
  rowMajor(x, steps);
  for (int d = 0; d < x.rank; d++) {
    int axis = args.axis(static_cast<size_t>(d), x.rank);
    EXPECT(args, !used[axis] && y.dims[d] == x.dims[axis],
           "each axis once, and an output of the permuted shape",
           x.describe() + " to " + y.describe());
    used[axis] = true;
    b.fromSteps[d] = steps[axis];
  }
  return b;
}

// Where, in bytes, the part of `whole` lies that begins at the attributes and is shaped as `part`.
inline int64_t partOffset(const Call& args, const View& whole, const View& part) {
  args.counts(2, static_cast<size_t>(whole.rank));
  EXPECT(args, part.rank == whole.rank, "a part of as many axes as " + whole.describe(),
         part.describe());
  int64_t at = 0;
  for (int d = 0; d < whole.rank; d++) {
    int64_t start = args.integer(static_cast<size_t>(d), 0, whole.dims[d]);
    EXPECT(args, part.dims[d] <= whole.dims[d] - start,
           "a part that lies within " + whole.describe(),
           part.describe() + " from " + std::to_string(start) + " on axis " + std::to_string(d));
    at = at * whole.dims[d] + start;
  }
  return at * static_cast<int64_t>(dtypeSize(whole.dtype));
}

inline Block sliceBlock(const Call& args) {
  args.atLeast(2, 0);
  const View &x = args[0], &y = args.writable(1);
  Block b = blockOf(y, x, y);
  b.from += partOffset(args, x, y);
  args.sameDType(0, 1);
  return b;
}

// x into the part of y that begins at the attributes; of one dtype, or any floating x onto f32 or
// bf16.
inline Block partBlock(const Call& args, bool widened = false) {
  args.atLeast(2, 0);
  const View &x = args[0], &y = widened ? args.activations(1) : args.writable(1);
  Block b = blockOf(y, x, x);
  b.to += partOffset(args, y, x);
  if (widened) {
    args.floating(0);
  } else {
    args.sameDType(0, 1);
  }
  return b;
}

// copy(block) of each input, after all are checked.
template <class F>
void concatBlocks(const Call& args, F copy) {
  args.atLeast(2, 1);
  args.counts(args.count, 1);
  size_t last = args.count - 1;
  const View& y = args.writable(last);
  int axis = args.axis(0, y.rank);
  int64_t total = 0;
  for (size_t i = 0; i < last; i++) {
    const View& x = args[i];
    args.sameDType(last, i);
    EXPECT(args, x.rank == y.rank, "inputs of as many axes as " + y.describe(), x.describe());
    for (int d = 0; d < y.rank; d++) {
      EXPECT(args, d == axis || x.dims[d] == y.dims[d], "an input that fits " + y.describe(),
             x.describe());
    }
    total += x.dims[axis];
  }
  EXPECT(args, total == y.dims[axis], "an output of " + std::to_string(total) + " along the axis",
         y.describe());
  int64_t at = 0;
  for (size_t i = 0; i < last; i++) {
    Block b = blockOf(y, args[i], args[i]);
    b.to += at * b.toSteps[axis] * static_cast<int64_t>(b.size);
    at += args[i].dims[axis];
    copy(b);
  }
}

inline Block broadcastBlock(const Call& args) {
  args.counts(2, 0);
  const View &x = args[0], &y = args.writable(1);
  args.sameDType(0, 1);
  EXPECT(args, x.rank <= y.rank, "an output of at least as many axes", y.describe());
  Block b = blockOf(y, x, y);
  EXPECT(args, stepsOver(x, y, b.fromSteps), "an input that broadcasts to " + y.describe(),
         x.describe());
  return b;
}

inline void checkCopy(const Call& args) {
  args.counts(2, 0);
  const View &x = args[0], &y = args.writable(1);
  args.sameDType(0, 1);
  EXPECT(args, x.count == y.count, std::to_string(x.count) + " elements", y.describe());
}

// with(value) of the attribute as an element of the tensor; half(dtype, value) gives the bits of
// bf16 and f16.
template <class H, class F>
void byFillValue(const Call& args, H half, F with) {
  args.counts(1, 1);
  const View& y = args.writable(0);
  double value = args.attrs[0];
  // Towards zero; beyond the range its end, NaN 0, as cast does.
  auto whole = [&](double lo, double hi) {
    return std::isnan(value) ? 0.0 : std::fmin(std::fmax(std::trunc(value), lo), hi);
  };
  switch (y.dtype) {
    case DType::f32:
      return with(static_cast<float>(value));
    case DType::f64:
      return with(value);
    case DType::f16:
    case DType::bf16:
      return with(static_cast<uint16_t>(half(y.dtype, static_cast<float>(value))));
    case DType::i32:
      return with(static_cast<int32_t>(whole(INT32_MIN, INT32_MAX)));
    case DType::i64:
      return with(value >= 0x1p63 ? INT64_MAX : static_cast<int64_t>(whole(-0x1p63, 0x1p63)));
    case DType::u8:
      return with(static_cast<uint8_t>(whole(0, 255)));
    case DType::boolean:
      return with(static_cast<uint8_t>(value != 0));
  }
}

}  // namespace lowrank

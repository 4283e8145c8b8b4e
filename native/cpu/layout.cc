// Moving data without changing it: permute, slice, concat, broadcast, copy, write, fill. Any dtype.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace lowrank {

void rowMajor(const View& v, int64_t* strides) {
  int64_t step = 1;
  for (int d = v.rank - 1; d >= 0; d--) {
    strides[d] = step;
    step *= v.dims[d];
  }
}

namespace {

template <class T>
void copyLine(char* to, int64_t toStep, const char* from, int64_t fromStep, int64_t n) {
  T* y = reinterpret_cast<T*>(to);
  const T* x = reinterpret_cast<const T*>(from);
  for (int64_t i = 0; i < n; i++) y[i * toStep] = x[i * fromStep];
}

void line(char* to, int64_t toStep, const char* from, int64_t fromStep, int64_t n, size_t size) {
  if (toStep == 1 && fromStep == 1) {
    std::memcpy(to, from, static_cast<size_t>(n) * size);
  } else if (size == 4) {
    copyLine<uint32_t>(to, toStep, from, fromStep, n);
  } else if (size == 2) {
    copyLine<uint16_t>(to, toStep, from, fromStep, n);
  } else if (size == 8) {
    copyLine<uint64_t>(to, toStep, from, fromStep, n);
  } else {
    copyLine<uint8_t>(to, toStep, from, fromStep, n);
  }
}

// Axes of a copy, joined where they can be: sizes and steps of the target and of the source.
struct Axes {
  int count;
  int64_t n[kMaxRank + 1], to[kMaxRank + 1], from[kMaxRank + 1];

  // Offsets of element `index` of all axes but `skipped` and the last.
  void at(int64_t index, int skipped, int64_t* toAt, int64_t* fromAt) const {
    *toAt = *fromAt = 0;
    for (int d = count - 2; d >= 0; d--) {
      if (d == skipped) continue;
      *toAt += index % n[d] * to[d];
      *fromAt += index % n[d] * from[d];
      index /= n[d];
    }
  }
};

// Copies words where the target runs along its last axis and the source along another: squares are
// turned. Says whether this is such a copy.
bool turned(Context& context, char* to, const char* from, const Axes& a, size_t size) {
  constexpr int64_t kStrip = 64;
  int inner = a.count - 1, other = -1;
  for (int d = 0; d < inner; d++) {
    if (a.from[d] == 1) other = d;
  }
  if (size != 4 || other < 0 || a.to[inner] != 1 || a.n[inner] < 4 || a.n[other] < 4) return false;
  int64_t strips = (a.n[other] + kStrip - 1) / kStrip, rest = 1;
  for (int d = 0; d < inner; d++) rest *= d == other ? 1 : a.n[d];
  auto turn = context.isa->turnWords;
  context.rows(rest * strips, kStrip * a.n[inner], [&](int64_t first, int64_t end, int) {
    for (int64_t i = first; i < end; i++) {
      int64_t j = i % strips * kStrip, atTo, atFrom;
      a.at(i / strips, other, &atTo, &atFrom);
      turn(reinterpret_cast<const uint32_t*>(from) + atFrom + j, a.from[inner], a.n[inner],
           std::min(kStrip, a.n[other] - j),
           reinterpret_cast<uint32_t*>(to) + atTo + j * a.to[other], a.to[other]);
    }
  });
  return true;
}

}  // namespace

void copyStrided(Context& context, char* to, const int64_t* toStrides, const char* from,
                 const int64_t* fromStrides, const int64_t* dims, int rank, size_t size) {
  Axes a = {};
  for (int d = 0; d < rank; d++) {
    if (dims[d] == 0) return;
    if (dims[d] == 1) continue;
    int last = a.count - 1;
    if (last >= 0 && a.to[last] == toStrides[d] * dims[d] &&
        a.from[last] == fromStrides[d] * dims[d]) {
      a.n[last] *= dims[d];
      a.to[last] = toStrides[d];
      a.from[last] = fromStrides[d];
      continue;
    }
    a.n[a.count] = dims[d];
    a.to[a.count] = toStrides[d];
    a.from[a.count++] = fromStrides[d];
  }
  if (a.count == 0) {
    std::memcpy(to, from, size);
    return;
  }
  int inner = a.count - 1;
  int64_t width = a.n[inner], toStep = a.to[inner], fromStep = a.from[inner], outer = 1;
  int64_t bytes = static_cast<int64_t>(size);
  for (int d = 0; d < inner; d++) outer *= a.n[d];
  if (outer == 1) {
    context.ranges(width, Context::kGrain, [&](int64_t i, int64_t e, int) {
      line(to + i * toStep * bytes, toStep, from + i * fromStep * bytes, fromStep, e - i, size);
    });
    return;
  }
  if (turned(context, to, from, a, size)) return;
  context.rows(outer, width, [&](int64_t first, int64_t end, int) {
    for (int64_t r = first; r < end; r++) {
      int64_t atTo, atFrom;
      a.at(r, -1, &atTo, &atFrom);
      line(to + atTo * bytes, toStep, from + atFrom * bytes, fromStep, width, size);
    }
  });
}

namespace {

void sameDType(const Args& args, size_t i, size_t j) {
  EXPECT(args, args[i].dtype == args[j].dtype,
         std::string("one dtype, ") + dtypeName(args[i].dtype), args[j].describe());
}

void permute(const Args& args) {
  args.atLeast(2, 0);
  const View &x = args[0], &y = args.writable(1);
  args.counts(2, static_cast<size_t>(x.rank));
  sameDType(args, 0, 1);
  int64_t from[kMaxRank], strides[kMaxRank], to[kMaxRank];
  bool used[kMaxRank] = {};
  rowMajor(x, from);
  EXPECT(args, y.rank == x.rank, "an output of as many axes", y.describe());
  for (int d = 0; d < x.rank; d++) {
    int axis = args.axis(static_cast<size_t>(d), x.rank);
    EXPECT(args, !used[axis] && y.dims[d] == x.dims[axis],
           "each axis once, and an output of the permuted shape",
           x.describe() + " to " + y.describe());
    used[axis] = true;
    strides[d] = from[axis];
  }
  rowMajor(y, to);
  copyStrided(args.context, y.data, to, x.data, strides, y.dims, y.rank, dtypeSize(x.dtype));
}

// Byte offset of the part of `whole` that begins at the attributes and is shaped as `part`.
int64_t partOffset(const Args& args, const View& whole, const View& part, const int64_t* strides) {
  args.counts(2, static_cast<size_t>(whole.rank));
  EXPECT(args, part.rank == whole.rank, "a part of as many axes as " + whole.describe(),
         part.describe());
  int64_t at = 0;
  for (int d = 0; d < whole.rank; d++) {
    int64_t start = args.integer(static_cast<size_t>(d), 0, whole.dims[d]);
    EXPECT(args, part.dims[d] <= whole.dims[d] - start,
           "a part that lies within " + whole.describe(),
           part.describe() + " from " + std::to_string(start) + " on axis " + std::to_string(d));
    at += start * strides[d];
  }
  return at * static_cast<int64_t>(dtypeSize(whole.dtype));
}

void slice(const Args& args) {
  args.atLeast(2, 0);
  const View &x = args[0], &y = args.writable(1);
  int64_t from[kMaxRank], to[kMaxRank];
  rowMajor(x, from);
  rowMajor(y, to);
  int64_t at = partOffset(args, x, y, from);
  sameDType(args, 0, 1);
  copyStrided(args.context, y.data, to, x.data + at, from, y.dims, y.rank, dtypeSize(x.dtype));
}

void place(const Args& args, bool clear) {
  const View &x = args[0], &y = args.writable(1);
  int64_t from[kMaxRank], to[kMaxRank];
  rowMajor(x, from);
  rowMajor(y, to);
  int64_t at = partOffset(args, y, x, to);
  sameDType(args, 0, 1);
  if (clear) {
    int64_t bytes = static_cast<int64_t>(y.bytes());
    args.context.ranges(bytes, Context::kGrain * 4, [&](int64_t i, int64_t e, int) {
      std::memset(y.data + i, 0, static_cast<size_t>(e - i));
    });
  }
  copyStrided(args.context, y.data + at, to, x.data, from, x.dims, x.rank, dtypeSize(x.dtype));
}

void sliceGrad(const Args& args) {
  args.atLeast(2, 0);
  place(args, true);
}

void write(const Args& args) {
  args.atLeast(2, 0);
  place(args, false);
}

// y's part that begins at the attributes += x, line by line of the last axis.
void sliceGradAdd(const Args& args) {
  args.atLeast(2, 0);
  const View &x = args[0], &y = args.out(1);
  int64_t to[kMaxRank];
  rowMajor(y, to);
  float* part = y.as<float>() + partOffset(args, y, x, to) / static_cast<int64_t>(sizeof(float));
  Floats dy = floats(args, 0);
  const float* from = dy;
  int inner = x.rank - 1;
  auto add = args.context.isa->binary[kAdd];
  args.context.rows(x.rows(), x.last(), [&](int64_t first, int64_t end, int) {
    for (int64_t r = first; r < end; r++) {
      int64_t rest = r, at = 0;
      for (int d = inner - 1; d >= 0; d--) {
        at += rest % x.dims[d] * to[d];
        rest /= x.dims[d];
      }
      add(part + at, 1, from + r * x.last(), 1, part + at, x.last());
    }
  });
}

void concat(const Args& args) {
  args.atLeast(2, 1);
  args.counts(args.count, 1);
  size_t last = args.count - 1;
  const View& y = args.writable(last);
  int axis = args.axis(0, y.rank);
  int64_t to[kMaxRank], from[kMaxRank], at = 0;
  rowMajor(y, to);
  for (int pass = 0; pass < 2; pass++) {  // check all, then copy
    at = 0;
    for (size_t i = 0; i < last; i++) {
      const View& x = args[i];
      if (pass == 0) {
        sameDType(args, last, i);
        EXPECT(args, x.rank == y.rank, "inputs of as many axes as " + y.describe(), x.describe());
        for (int d = 0; d < y.rank; d++) {
          EXPECT(args, d == axis || x.dims[d] == y.dims[d], "an input that fits " + y.describe(),
                 x.describe());
        }
      } else {
        rowMajor(x, from);
        copyStrided(args.context, y.data + at * to[axis] * static_cast<int64_t>(dtypeSize(y.dtype)),
                    to, x.data, from, x.dims, x.rank, dtypeSize(y.dtype));
      }
      at += x.dims[axis];
    }
    EXPECT(args, at == y.dims[axis], "an output of " + std::to_string(at) + " along the axis",
           y.describe());
  }
}

void broadcast(const Args& args) {
  args.counts(2, 0);
  const View &x = args[0], &y = args.writable(1);
  sameDType(args, 0, 1);
  EXPECT(args, x.rank <= y.rank, "an output of at least as many axes", y.describe());
  int64_t from[kMaxRank], to[kMaxRank], step = 1;
  rowMajor(y, to);
  for (int d = y.rank - 1, s = x.rank - 1; d >= 0; d--, s--) {
    int64_t n = s >= 0 ? x.dims[s] : 1;
    EXPECT(args, n == 1 || n == y.dims[d], "an input that broadcasts to " + y.describe(),
           x.describe());
    from[d] = n == 1 ? 0 : step;
    step *= n;
  }
  copyStrided(args.context, y.data, to, x.data, from, y.dims, y.rank, dtypeSize(x.dtype));
}

void copy(const Args& args) {
  args.counts(2, 0);
  const View &x = args[0], &y = args.writable(1);
  sameDType(args, 0, 1);
  EXPECT(args, x.count == y.count, std::to_string(x.count) + " elements", y.describe());
  args.context.ranges(static_cast<int64_t>(x.bytes()), Context::kGrain * 4,
                      [&](int64_t i, int64_t e, int) {
                        std::memmove(y.data + i, x.data + i, static_cast<size_t>(e - i));
                      });
}

template <class T>
void fillWith(const Args& args, T value) {
  T* y = args[0].as<T>();
  args.context.ranges(args[0].count, Context::kGrain,
                      [&](int64_t i, int64_t e, int) { std::fill(y + i, y + e, value); });
}

void fill(const Args& args) {
  args.counts(1, 1);
  const View& y = args.writable(0);
  double value = args.attrs[0];
  float narrow = static_cast<float>(value);
  uint16_t half;
  // Towards zero; beyond the range its end, NaN 0, as cast does.
  auto whole = [&](double lo, double hi) {
    return std::isnan(value) ? 0.0 : std::min(std::max(std::trunc(value), lo), hi);
  };
  switch (y.dtype) {
    case DType::f32:
      return fillWith<float>(args, narrow);
    case DType::f64:
      return fillWith<double>(args, value);
    case DType::f16:
      args.context.isa->narrowF16(&narrow, &half, 1);
      return fillWith<uint16_t>(args, half);
    case DType::bf16:
      args.context.isa->narrowBf16(&narrow, &half, 1);
      return fillWith<uint16_t>(args, half);
    case DType::i32:
      return fillWith<int32_t>(args, static_cast<int32_t>(whole(INT32_MIN, INT32_MAX)));
    case DType::i64:
      return fillWith<int64_t>(
          args, value >= 0x1p63 ? INT64_MAX : static_cast<int64_t>(whole(-0x1p63, 0x1p63)));
    case DType::u8:
      return fillWith<uint8_t>(args, static_cast<uint8_t>(whole(0, 255)));
    case DType::boolean:
      return fillWith<uint8_t>(args, value != 0);
  }
}

}  // namespace

void registerLayout(Registry& r) {
  r.push_back({"permute", permute});
  r.push_back({"slice", slice});
  r.push_back({"slice.grad", sliceGrad});
  r.push_back({"slice.gradAdd", sliceGradAdd});
  r.push_back({"concat", concat});
  r.push_back({"broadcast", broadcast});
  r.push_back({"fill", fill});
  r.push_back({"copy", copy});
  r.push_back({"write", write});
}

}  // namespace lowrank

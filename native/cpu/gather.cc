// Elements by index along one axis (NumPy's take_along_axis), and the gradient.
#include <algorithm>

#include "kernels.h"

namespace lowrank {

namespace {

struct Along {
  int64_t outer, from, to, inner;  // sizes: `from` of the source axis, `to` of the index axis
  const int32_t* index;
};

Along check(const Args& args, size_t index, size_t source, size_t picked) {
  const View &i = args.typed(index, DType::i32), &x = args[source];
  int axis = args.axis(0, x.rank);
  EXPECT(args, i.rank == x.rank, "an index of as many axes as " + x.describe(), i.describe());
  for (int d = 0; d < x.rank; d++) {
    EXPECT(args, d == axis || i.dims[d] == x.dims[d], "an index that matches off the axis",
           i.describe());
  }
  args.sameShape(index, picked);
  Along a = {x.product(0, axis), x.dims[axis], i.dims[axis], x.product(axis + 1, x.rank),
             i.as<int32_t>()};
  for (int64_t n = 0; n < i.count; n++) {
    EXPECT(args, a.index[n] >= 0 && a.index[n] < a.from,
           "indices from 0 to " + std::to_string(a.from - 1), std::to_string(a.index[n]));
  }
  return a;
}

template <class T>
void pick(const Args& args, const Along& a) {
  const T* x = args[0].as<T>();
  T* y = args[2].as<T>();
  args.context.rows(a.outer, a.to * a.inner, [&](int64_t from, int64_t to, int) {
    for (int64_t o = from; o < to; o++) {
      for (int64_t i = 0; i < a.to * a.inner; i++) {
        int64_t at = o * a.to * a.inner + i;
        y[at] = x[(o * a.from + a.index[at]) * a.inner + i % a.inner];
      }
    }
  });
}

void gather(const Args& args) {
  args.counts(3, 1);
  Along a = check(args, 1, 0, 2);
  EXPECT(args, args[0].dtype == args[2].dtype, "an output of the input's dtype",
         args[2].describe());
  args.writable(2);
  switch (dtypeSize(args[0].dtype)) {
    case 1:
      return pick<uint8_t>(args, a);
    case 2:
      return pick<uint16_t>(args, a);
    case 4:
      return pick<uint32_t>(args, a);
    default:
      return pick<uint64_t>(args, a);
  }
}

void gatherGrad(const Args& args) {
  args.counts(3, 1);
  Along a = check(args, 0, 2, 1);
  Floats dy = floats(args, 1);
  float* dx = args.out(2).as<float>();
  args.context.rows(a.outer, (a.from + a.to) * a.inner, [&](int64_t from, int64_t to, int) {
    std::fill(dx + from * a.from * a.inner, dx + to * a.from * a.inner, 0.0f);
    for (int64_t o = from; o < to; o++) {
      for (int64_t i = 0; i < a.to * a.inner; i++) {
        int64_t at = o * a.to * a.inner + i;
        dx[(o * a.from + a.index[at]) * a.inner + i % a.inner] += dy[at];
      }
    }
  });
}

}  // namespace

void registerGather(Registry& r) {
  r.push_back({"gather", gather});
  r.push_back({"gather.grad", gatherGrad});
}

}  // namespace lowrank

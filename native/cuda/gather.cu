// Elements by index along one axis (NumPy's take_along_axis), and the gradient.
#include "pack.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;

// Sizes: `from` of the source axis, `to` of the index axis.
struct Along {
  int64_t from;
  Divisor to, inner;
  int64_t count, lines;  // elements of the index, and lines along its axis
  const int* index;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    gatherKernel(const T* x, Along a, T* y, FaultSink sink) {
  int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= a.count) return;
  int64_t i, k, place = a.index[e];
  int64_t o = divide(divide(e, a.inner, i), a.to, k);
  if (place < 0 || place >= a.from) {
    report(sink, FaultKind::id, place, a.from);
    y[e] = 0;
    return;
  }
  y[e] = x[(o * a.from + place) * a.inner.n + i];
}

// A thread a line, so that each place is added to in the order of the index; dx is 0 before.
__global__ void __launch_bounds__(kThreads)
    gatherGradKernel(Along a, AnyFloats dy, float* dx, FaultSink sink) {
  int64_t line = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (line >= a.lines) return;
  int64_t i;
  int64_t o = divide(line, a.inner, i);
  float* to = dx + o * a.from * a.inner.n + i;
  for (int64_t k = 0; k < a.to.n; k++) {
    int64_t e = (o * a.to.n + k) * a.inner.n + i, place = a.index[e];
    if (place < 0 || place >= a.from) {
      report(sink, FaultKind::id, place, a.from);
    } else {
      to[place * a.inner.n] += dy[e];
    }
  }
}

// Launchers.

Along check(const CudaArgs& args, size_t index, size_t source, size_t picked) {
  const View &i = args.typed(index, DType::i32), &x = args[source];
  int axis = args.axis(0, x.rank);
  EXPECT(args, i.rank == x.rank, "an index of as many axes as " + x.describe(), i.describe());
  for (int d = 0; d < x.rank; d++) {
    EXPECT(args, d == axis || i.dims[d] == x.dims[d], "an index that matches off the axis",
           i.describe());
  }
  args.sameShape(index, picked);
  Along a = {};
  a.from = x.dims[axis];
  a.to = i.dims[axis];
  a.inner = x.product(axis + 1, x.rank);
  a.count = i.count;
  a.lines = x.product(0, axis) * a.inner.n;
  a.index = i.as<int32_t>();
  return a;
}

template <class T>
void pick(const CudaArgs& args, const Along& a) {
  launch(args, gatherKernel<T>, dim3(blocksFor(a.count, kThreads)), dim3(kThreads), 0,
         args[0].as<T>(), a, args[2].as<T>(), args.sink());
}

void gather(const CudaArgs& args) {
  args.counts(3, 1);
  Along a = check(args, 1, 0, 2);
  EXPECT(args, args[0].dtype == args[2].dtype, "an output of the input's dtype",
         args[2].describe());
  args.writable(2);
  if (a.count == 0) return;
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

void gatherGrad(const CudaArgs& args) {
  args.counts(3, 1);
  Along a = check(args, 0, 2, 1);
  AnyFloats dy = anyFloats(args, 1);
  const View& dx = args.out(2);
  if (dx.count > 0) {
    cudaCheck(args.kernel, cudaMemsetAsync(dx.data, 0, dx.bytes(), args.device.stream));
  }
  if (a.count == 0) return;
  launch(args, gatherGradKernel, dim3(blocksFor(a.lines, kThreads)), dim3(kThreads), 0, a, dy,
         dx.as<float>(), args.sink());
}

}  // namespace

void registerGather(CudaRegistry& r) {
  r.push_back({"gather", gather});
  r.push_back({"gather.grad", gatherGrad});
}

}  // namespace lowrank

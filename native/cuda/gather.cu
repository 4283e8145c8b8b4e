// Elements by index along one axis (NumPy's take_along_axis), and the gradient.
#include "../common/calls/gather.h"
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

Along alongOf(const Picks& p) {
  return {p.from, p.to, p.inner, p.count, p.outer * p.inner, p.index};
}

void gather(const CudaArgs& args) {
  Along a = alongOf(gatherPicks(args));
  if (a.count == 0) return;
  byWord(dtypeSize(args[0].dtype), [&](auto word) {
    using T = decltype(word);
    launch(args, gatherKernel<T>, dim3(blocksFor(a.count, kThreads)), dim3(kThreads), 0,
           args[0].as<T>(), a, args[2].as<T>(), args.sink());
  });
}

void gatherGrad(const CudaArgs& args) {
  Along a = alongOf(gatherGradPicks(args));
  const View& dx = args[2];
  if (dx.count > 0) {
    cudaCheck(args.kernel, cudaMemsetAsync(dx.data, 0, dx.bytes(), args.device.stream));
  }
  if (a.count == 0) return;
  launch(args, gatherGradKernel, dim3(blocksFor(a.lines, kThreads)), dim3(kThreads), 0, a,
         anyFloats(args, 1), dx.as<float>(), args.sink());
}

}  // namespace

void registerGather(CudaRegistry& r) {
  r.push_back({"gather", gather});
  r.push_back({"gather.grad", gatherGrad});
}

}  // namespace lowrank

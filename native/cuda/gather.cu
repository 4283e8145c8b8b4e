// Elements by index along one axis (NumPy's take_along_axis), and the gradient.
#include "../common/calls/gather.h"
#include "sort.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kLongLine = 64;  // indices that are worth a sort

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

// The element of dx that each element of dy is added to; `count`, the number of them, for none.
__global__ void __launch_bounds__(kThreads)
    targetsKernel(Along a, int64_t count, Placed* out, FaultSink sink) {
  int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= a.count) return;
  int64_t i, k, place = a.index[e];
  int64_t o = divide(divide(e, a.inner, i), a.to, k);
  int64_t target = (o * a.from + place) * a.inner.n + i;
  if (place < 0 || place >= a.from) {
    report(sink, FaultKind::id, place, a.from);
    target = count;
  }
  out[e] = {static_cast<unsigned>(target), static_cast<int>(e)};
}

// A thread a run of one target: its elements of dy in the order of the index.
__global__ void __launch_bounds__(kThreads)
    runsKernel(const Placed* sorted, int64_t n, int64_t count, AnyFloats dy, float* dx) {
  constexpr int kAhead = 8;
  int64_t begin = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (begin >= n) return;
  unsigned target = sorted[begin].id;
  if (target >= count || (begin > 0 && sorted[begin - 1].id == target)) return;
  float sum = 0;
  for (int64_t from = begin; from < n; from += kAhead) {
    float more[kAhead];
    int own = 0;  // how many of these are the run's
#pragma unroll
    for (int j = 0; j < kAhead; j++) {
      Placed p = from + j < n ? sorted[from + j] : Placed{~0u, 0};
      bool same = p.id == target;
      more[j] = same ? dy[p.place] : 0.0f;
      own += same;
    }
#pragma unroll
    for (int j = 0; j < kAhead; j++) {
      if (j < own) sum += more[j];
    }
    if (own < kAhead) break;
  }
  dx[target] = sum;
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
  // Long lines that are too few for the card: sorted by target. The sums have the same order.
  bool sorts = a.to.n > kLongLine && a.lines < kThreads * 8 * args.device.multiprocessors;
  if (sorts && dx.count < INT32_MAX && a.count < INT32_MAX) {
    Workspace held(args.device.memory, sortBytes(a.count));
    dim3 grid(blocksFor(a.count, kThreads)), block(kThreads);
    launch(args, targetsKernel, grid, block, 0, a, dx.count, held.as<Placed>(), args.sink());
    const Placed* sorted = sortPlaced(args, a.count, dx.count, held.as<char>());
    launch(args, runsKernel, grid, block, 0, sorted, a.count, dx.count, anyFloats(args, 1),
           dx.as<float>());
    return;
  }
  launch(args, gatherGradKernel, dim3(blocksFor(a.lines, kThreads)), dim3(kThreads), 0, a,
         anyFloats(args, 1), dx.as<float>(), args.sink());
}

}  // namespace

void registerGather(CudaRegistry& r) {
  r.push_back({"gather", gather});
  r.push_back({"gather.grad", gatherGrad});
}

}  // namespace lowrank

// Sums over any axes, and largest elements along one.
#include "../common/calls/reduce.h"
#include "reduce.h"
#include "sums.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = kSumThreads;

struct Best {
  float value;
  int place;
};

// The larger; NaN is larger than everything, and the first of equals counts.
__device__ __forceinline__ Best better(const Best& a, const Best& b) {
  bool noA = a.value != a.value, noB = b.value != b.value;
  if (noA != noB) return noA ? a : b;
  if (!noA && a.value != b.value) return a.value > b.value ? a : b;
  return a.place < b.place ? a : b;
}

struct Axis {
  int64_t outer;
  Divisor n, inner;
};

// The axis is the innermost: kLanes threads a row.
template <int kLanes>
__global__ void __launch_bounds__(kThreads)
    maxLinesKernel(AnyFloats x, Axis a, float* y, int* index) {
  SHARED(Best, room, [kThreads / kWarp]);
  int lane = static_cast<int>(threadIdx.x) % kLanes;
  int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  Best best = {-INFINITY, INT32_MAX};
  if (row < a.outer) {
#pragma unroll 4
    for (int64_t i = lane; i < a.n.n; i += kLanes) {
      best = better(best, {x[row * a.n.n + i], static_cast<int>(i)});
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    Best other = {__shfl_xor_sync(kAllLanes, best.value, step),
                  __shfl_xor_sync(kAllLanes, best.place, step)};
    best = better(best, other);
  }
  if constexpr (kLanes > kWarp) {
    if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = best;
    __syncthreads();
    for (int w = 0; w < kThreads / kWarp; w++) best = better(best, room[w]);
  }
  if (lane > 0 || row >= a.outer) return;
  if (y) y[row] = best.value;
  index[row] = best.place;
}

__global__ void __launch_bounds__(kThreads)
    maxColumnsKernel(AnyFloats x, Axis a, float* y, int* index) {
  int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (o >= a.outer * a.inner.n) return;
  int64_t i;
  int64_t base = divide(o, a.inner, i) * a.n.n * a.inner.n + i;
  Best best = {-INFINITY, INT32_MAX};
  for (int64_t k = 0; k < a.n.n; k++) {
    best = better(best, {x[base + k * a.inner.n], static_cast<int>(k)});
  }
  if (y) y[o] = best.value;
  index[o] = best.place;
}

__global__ void __launch_bounds__(kThreads)
    maxGradKernel(const int* index, AnyFloats dy, Axis a, float* dx, FaultSink sink) {
  int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= a.outer * a.n.n * a.inner.n) return;
  int64_t i, k;
  int64_t o = divide(divide(e, a.inner, i), a.n, k) * a.inner.n + i;
  int64_t place = index[o];
  if (k == 0 && (place < 0 || place >= a.n.n)) report(sink, FaultKind::id, place, a.n.n);
  dx[e] = place == k ? dy[o] : 0.0f;
}

// Launchers.

Axes axesOf(const AxisGroup& g) {
  Axes a = {};
  for (; a.rank < g.rank; a.rank++) {
    a.dims[a.rank] = g.dims[a.rank];
    a.steps[a.rank] = g.steps[a.rank];
  }
  return a;
}

// Parts that fill the card where there are `units` of work of n, none smaller than `least` or
// larger than `most`, so that no thread adds up many in f32.
int64_t partsOf(const CudaArgs& args, int64_t units, int64_t n, int64_t least, int64_t most) {
  int64_t wish = (args.device.multiprocessors * 4 + units - 1) / units;
  if (args.device.batchInvariant) wish = 1;
  int64_t parts = wish < n / least ? wish : n / least;
  if (parts < (n + most - 1) / most) parts = (n + most - 1) / most;
  return parts > 1 ? parts : 1;
}

template <int kLanes>
void launchLines(const CudaArgs& args, const Lines& l, bool packed, float* y) {
  dim3 grid(blocksFor(l.outputs * l.parts.n, kThreads / kLanes)), block(kThreads);
  if (packed) {
    launch(args, sumLinesKernel<kLanes, true>, grid, block, 0, l, y);
  } else {
    launch(args, sumLinesKernel<kLanes, false>, grid, block, 0, l, y);
  }
}

// The rows of a matrix.
Lines linesOf(const AnyFloats& x, int64_t rows, int64_t n) {
  Lines l = {};
  l.x = x;
  l.outputs = rows;
  l.n = l.width = n;
  l.kept.rank = 1;
  l.kept.dims[0] = rows;
  l.kept.steps[0] = n;
  return l;
}

void sumLines(const CudaArgs& args, Lines l, float* y) {
  bool packed = l.x.f32() && aligned(l.x.data) && l.width % 4 == 0;
  for (int d = 0; d < l.kept.rank; d++) packed = packed && l.kept.steps[d] % 4 == 0;
  for (int d = 0; d < l.outer.rank; d++) packed = packed && l.outer.steps[d] % 4 == 0;
  int64_t parts = partsOf(args, l.outputs, l.n, 8192, 65536);
  l.parts = parts;
  l.line = l.width;
  l.chunk = ((l.n + parts - 1) / parts + 3) / 4 * 4;
  Workspace held(args.device.memory, parts > 1 ? static_cast<uint64_t>(l.outputs * parts) * 4 : 0);
  float* to = parts > 1 ? held.as<float>() : y;
  if (l.n <= 8) {
    launchLines<1>(args, l, packed, to);
  } else if (l.n <= 1024) {
    launchLines<kWarp>(args, l, packed, to);
  } else {
    launchLines<kThreads>(args, l, packed, to);
  }
  if (parts > 1) sumLines(args, linesOf({to, DType::f32}, l.outputs, parts), y);
}

// The columns of a matrix.
Columns columnsOf(const AnyFloats& x, int64_t rows, int64_t width) {
  Columns c = {};
  c.x = x;
  c.width = width;
  c.times = rows;
  c.outer = 1;
  c.reduced.rank = 1;
  c.reduced.dims[0] = rows;
  c.reduced.steps[0] = width;
  return c;
}

void sumColumns(const CudaArgs& args, Columns c, float* y) {
  bool packed = c.x.f32() && aligned(c.x.data) && c.width % 4 == 0;
  for (int d = 0; d < c.kept.rank; d++) packed = packed && c.kept.steps[d] % 4 == 0;
  for (int d = 0; d < c.reduced.rank; d++) packed = packed && c.reduced.steps[d] % 4 == 0;
  int64_t across = packed ? kWarp * 4 : kWarp;
  int64_t tiles = (c.width + across - 1) / across, outer = c.outer.n, outputs = outer * c.width;
  c.tiles = tiles;
  c.parts = partsOf(args, outer * tiles, c.times, 64, 4096);
  c.chunk = (c.times + c.parts - 1) / c.parts;
  Workspace held(args.device.memory,
                 c.parts > 1 ? static_cast<uint64_t>(outputs * c.parts) * 4 : 0);
  float* to = c.parts > 1 ? held.as<float>() : y;
  dim3 grid(static_cast<unsigned>(tiles * outer * c.parts)), block(kThreads);
  if (packed) {
    launch(args, sumColumnsKernel<true>, grid, block, 0, c, to);
  } else {
    launch(args, sumColumnsKernel<false>, grid, block, 0, c, to);
  }
  if (c.parts > 1) sumColumns(args, columnsOf({to, DType::f32}, c.parts, outputs), y);
}

void sum(const CudaArgs& args) {
  SumAxes g = sumAxes(args);
  AnyFloats x = anyFloats(args, 0);
  const View& y = args[1];
  if (y.count == 0) return;
  if (args[0].count == 0) {
    cudaCheck(args.kernel, cudaMemsetAsync(y.data, 0, y.bytes(), args.device.stream));
    return;
  }
  int64_t times = g.reduced.product(g.reduced.rank);
  if (g.innerReduced || g.kept.rank == 0) {
    Lines l = {};
    l.x = x;
    l.outputs = y.count;
    l.n = times;
    l.width = g.reduced.rank > 0 ? g.reduced.dims[g.reduced.rank - 1] : 1;
    l.kept = axesOf(g.kept);
    l.outer = axesOf(g.reduced);
    if (l.outer.rank > 0) l.outer.rank--;
    sumLines(args, l, y.as<float>());
  } else {
    Columns c = {};
    c.x = x;
    c.width = g.kept.dims[g.kept.rank - 1];
    c.outer = y.count / c.width;
    c.times = times;
    c.kept = axesOf(g.kept);
    c.kept.rank--;
    c.reduced = axesOf(g.reduced);
    sumColumns(args, c, y.as<float>());
  }
}

template <bool Values>
void largest(const CudaArgs& args) {
  Largest l = largestOf(args, Values);
  if (l.count == 0) return;
  AnyFloats x = anyFloats(args, 0);
  Axis a = {l.a.outer, l.a.n, l.a.inner};
  dim3 block(kThreads);
  if (l.a.inner > 1) {
    launch(args, maxColumnsKernel, dim3(blocksFor(l.count, kThreads)), block, 0, x, a, l.y,
           l.index);
  } else if (l.a.n <= 1024) {
    launch(args, maxLinesKernel<kWarp>, dim3(blocksFor(a.outer, kThreads / kWarp)), block, 0, x, a,
           l.y, l.index);
  } else {
    launch(args, maxLinesKernel<kThreads>, dim3(blocksFor(a.outer, 1)), block, 0, x, a, l.y,
           l.index);
  }
}

void maxGrad(const CudaArgs& args) {
  AroundAxis a = maxGradAxis(args);
  const View& dx = args[2];
  if (dx.count == 0) return;
  launch(args, maxGradKernel, dim3(blocksFor(dx.count, kThreads)), dim3(kThreads), 0,
         args[0].as<int32_t>(), anyFloats(args, 1), Axis{a.outer, a.n, a.inner}, dx.as<float>(),
         args.sink());
}

}  // namespace

void sumOfRows(const CudaArgs& args, const float* x, int64_t rows, int64_t width, float* y) {
  sumColumns(args, columnsOf({x, DType::f32}, rows, width), y);
}

void registerReduce(CudaRegistry& r) {
  r.push_back({"sum", sum});
  r.push_back({"max", largest<true>});
  r.push_back({"max.grad", maxGrad});
  r.push_back({"argmax", largest<false>});
}

}  // namespace lowrank

// Softmax and log-softmax over the last axis, and their gradients.
#include "rows.cuh"

namespace lowrank {

namespace {

template <bool Log, int kLanes, class T>
__global__ void __launch_bounds__(Lanes<kLanes>::kThreads)
    softmaxKernel(const T* x, float* y, int64_t rows, int64_t n) {
  SHARED(Top, room, [Lanes<kLanes>::kWarps]);
  int64_t row = Lanes<kLanes>::row();
  if (row >= rows) return;  // whole warps, and whole blocks where a row has more
  x += row * n;
  y += row * n;
  Top top = topOf<kLanes>(x, n, room);
  float factor = Log ? logf(top.sum) : 1.0f / top.sum;
#pragma unroll 4
  for (int64_t i = Lanes<kLanes>::lane(); i < n; i += kLanes) {
    // Two subtractions: max + log(sum) in one f32 would lose digits of small results.
    float v = widen(x[i]) - top.max;
    y[i] = Log ? v - factor : expf(v) * factor;
  }
}

// dx = y (dy - sum y dy); of the logarithm: dy - exp(y) sum dy
template <bool Log, int kLanes>
__global__ void __launch_bounds__(Lanes<kLanes>::kThreads)
    softmaxGradKernel(AnyFloats y, AnyFloats dy, float* dx, int64_t rows, int64_t n) {
  SHARED(float, room, [Lanes<kLanes>::kWarps]);
  int64_t row = Lanes<kLanes>::row();
  if (row >= rows) return;
  float sum = 0;
#pragma unroll 4
  for (int64_t i = Lanes<kLanes>::lane(); i < n; i += kLanes) {
    float d = dy[row * n + i];
    sum += Log ? d : y[row * n + i] * d;
  }
  sum = Lanes<kLanes>::sum(sum, room);
#pragma unroll 4
  for (int64_t i = row * n + Lanes<kLanes>::lane(); i < row * n + n; i += kLanes) {
    float v = y[i], d = dy[i];
    dx[i] = Log ? d - expf(v) * sum : v * (d - sum);
  }
}

// Launchers.

template <bool Log>
void forward(const CudaArgs& args) {
  args.counts(2, 0);
  args.alike(1, 1);
  const View &x = args[0], &y = args.out(1);
  if (x.count == 0) return;
  byFloat(x.dtype, [&](auto type) {
    using T = decltype(type);
    byLanes(x.last(), [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::value;
      launch(args, softmaxKernel<Log, kLanes, T>,
             dim3(blocksFor(x.rows(), Lanes<kLanes>::kPerBlock)), dim3(Lanes<kLanes>::kThreads), 0,
             x.as<T>(), y.as<float>(), x.rows(), x.last());
    });
  });
}

template <bool Log>
void backward(const CudaArgs& args) {
  args.counts(3, 0);
  args.alike(2, 1);
  AnyFloats y = anyFloats(args, 0), dy = anyFloats(args, 1);
  const View& dx = args.out(2);
  if (dx.count == 0) return;
  byLanes(dx.last(), [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    launch(args, softmaxGradKernel<Log, kLanes>,
           dim3(blocksFor(dx.rows(), Lanes<kLanes>::kPerBlock)), dim3(Lanes<kLanes>::kThreads), 0,
           y, dy, dx.as<float>(), dx.rows(), dx.last());
  });
}

}  // namespace

void registerSoftmax(CudaRegistry& r) {
  r.push_back({"softmax", forward<false>});
  r.push_back({"logSoftmax", forward<true>});
  r.push_back({"softmax.grad", backward<false>});
  r.push_back({"logSoftmax.grad", backward<true>});
}

}  // namespace lowrank

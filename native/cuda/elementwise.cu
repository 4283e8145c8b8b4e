// Elementwise ops.
#include "device.h"

namespace lowrank {

namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void affineKernel(const T* x, float* y, int64_t n, float scale, float shift) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) y[i] = scale * widen(x[i]) + shift;
}

void affine(const CudaArgs& args) {
  args.counts(2, 2);
  const View& x = args[0];
  const View& y = args.out(1);
  args.sameShape(0, 1);
  EXPECT(args, isFloat(x.dtype), "tensor 0 of f32, f16 or bf16", x.describe());
  if (y.count == 0) return;
  float scale = static_cast<float>(args.attrs[0]), shift = static_cast<float>(args.attrs[1]);
  byFloat(x.dtype, [&](auto type) {
    using T = decltype(type);
    launch(args, affineKernel<T>, dim3(blocksFor(x.count, kThreads)), dim3(kThreads), 0, x.as<T>(),
           y.as<float>(), x.count, scale, shift);
  });
}

}  // namespace

void registerElementwise(CudaRegistry& r) { r.push_back({"affine", affine}); }

}  // namespace lowrank

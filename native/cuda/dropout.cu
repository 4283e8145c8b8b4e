// Dropout whose mask is a function of (seed, stream, step, element), so it is never stored.
#include <cmath>

#include "pack.cuh"
#include "philox.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;

struct Key {
  uint64_t seed;
  uint32_t stream, step;
  uint64_t threshold;  // up to 2^32
  float keep;
};

// Four elements a thread: those of one counter.
template <bool Packed>
__global__ void __launch_bounds__(kThreads)
    dropoutKernel(AnyFloats x, AnyOut y, int64_t n, Key key) {
  int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, i = block * 4;
  if (i >= n) return;
  uint32_t word[4];
  float v[4];
  bool whole = Packed && i + 4 <= n;
  if (whole) x.four(i, v);
  philox(static_cast<uint64_t>(block), key.stream, key.step, key.seed, word);
  if (whole) {
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = word[k] >= key.threshold ? v[k] * key.keep : 0.0f;
    y.four(i, v);
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; k++) {
    if (i + k < n) y.set(i + k, word[k] >= key.threshold ? x[i + k] * key.keep : 0.0f);
  }
}

// Launcher.

void dropout(const CudaArgs& args) {
  args.counts(2, 4);
  AnyFloats x = anyFloats(args, 0);
  args.sameShape(0, 1);
  const View& view = args.activations(1);
  AnyOut y(view);
  double p = args.attrs[0];
  EXPECT(args, p >= 0 && p <= 1, "a probability from 0 to 1", std::to_string(p));
  Key key = {};
  key.seed = static_cast<uint64_t>(args.integer(1, 0, int64_t{1} << 53));
  key.stream = static_cast<uint32_t>(args.integer(2, 0, UINT32_MAX));
  key.step = static_cast<uint32_t>(args.integer(3, 0, UINT32_MAX));
  // u = word / 2^32 >= p, both as doubles: word >= ceil(p * 2^32), and the product is exact.
  key.threshold = static_cast<uint64_t>(std::ceil(p * 4294967296.0));
  key.keep = p < 1 ? static_cast<float>(1 / (1 - p)) : 0.0f;
  if (view.count == 0) return;
  bool packed = x.packs() && y.packs();
  launch(args, packed ? dropoutKernel<true> : dropoutKernel<false>,
         dim3(blocksFor(view.count, kThreads * 4)), dim3(kThreads), 0, x, y, view.count, key);
}

}  // namespace

void registerDropout(CudaRegistry& r) { r.push_back({"dropout", dropout}); }

}  // namespace lowrank

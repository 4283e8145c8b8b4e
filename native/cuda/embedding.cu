// Rows of a table by id, and the gradient of the table.
#include "../common/calls/rows.h"
#include "sort.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;
constexpr int kGradThreads = 64;  // few, so that a run of many rows has several blocks

// Packed: four channels at once.
template <bool Packed>
__global__ void __launch_bounds__(kThreads)
    embeddingKernel(AnyFloats table, int64_t v, Divisor c, const int* ids, float* y, int64_t n,
                    FaultSink sink) {
  constexpr int kEach = Packed ? 4 : 1;
  int64_t e = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kEach;
  if (e >= n) return;
  int64_t channel;
  int64_t id = ids[divide(e, c, channel)];
  bool known = id >= 0 && id < v;
  if (!known && channel == 0) report(sink, FaultKind::id, id, v);
  int64_t from = id * c.n + channel;
  if constexpr (Packed) {
    float row[4] = {0, 0, 0, 0};
    if (known) table.four(from, row);
    storePack(y + e, row);
  } else {
    y[e] = known ? table[from] : 0.0f;
  }
}

// A row of blocks for each run of one id in the sorted list: the rows of dy added in order of their
// places, onto what is there unless `fresh`. A block where no run begins has nothing to do. Packed:
// f32, four channels at once.
template <bool Packed>
__global__ void __launch_bounds__(kGradThreads)
    embeddingGradKernel(const Placed* sorted, int64_t n, int64_t v, AnyFloats dy, int64_t c,
                        float* table, bool fresh) {
  constexpr int kEach = Packed ? 4 : 1;
  int64_t begin = blockIdx.x;
  int64_t id = sorted[begin].id;
  if (id >= v || (begin > 0 && sorted[begin - 1].id == id)) return;
  SHARED(int64_t, runEnd, [1]);
  if (threadIdx.x == 0) {
    int64_t low = begin, high = n;  // the last of this id lies in [low, high)
    while (high - low > 1) {
      int64_t middle = low + (high - low) / 2;
      if (sorted[middle].id == id) {
        low = middle;
      } else {
        high = middle;
      }
    }
    runEnd[0] = high;
  }
  __syncthreads();
  int64_t end = runEnd[0];
  float* row = table + id * c;
  int64_t i = (static_cast<int64_t>(blockIdx.y) * kGradThreads + threadIdx.x) * kEach;
  if (i >= c) return;
  float sum[kEach] = {};
  if constexpr (Packed) {
    const float* from = static_cast<const float*>(dy.data) + i;
    if (!fresh) loadPack(row + i, sum);
#pragma unroll 8
    for (int64_t j = begin; j < end; j++) {
      float d[4];
      loadPack(from + sorted[j].place * c, d);
#pragma unroll
      for (int k = 0; k < 4; k++) sum[k] += d[k];
    }
    storePack(row + i, sum);
  } else {
    if (!fresh) sum[0] = row[i];
#pragma unroll 4
    for (int64_t j = begin; j < end; j++) sum[0] += dy[sorted[j].place * c + i];
    row[i] = sum[0];
  }
}

// Launchers.

void embedding(const CudaArgs& args) {
  TableRows r = embeddingRows(args);
  const View& y = args[2];
  if (y.count == 0) return;
  AnyFloats from = anyFloats(args, 0);
  bool packed = r.c % 4 == 0 && from.packs() && aligned(y.data);
  launch(args, packed ? embeddingKernel<true> : embeddingKernel<false>,
         dim3(blocksFor(y.count, kThreads * (packed ? 4 : 1))), dim3(kThreads), 0, from, r.v, r.c,
         r.ids, y.as<float>(), y.count, args.sink());
}

template <bool Fresh>
void embeddingGrad(const CudaArgs& args) {
  TableRows r = embeddingGradRows(args);
  const View& table = args[2];
  int64_t v = r.v, c = r.c, n = r.n;
  EXPECT(args, v < INT32_MAX && n < INT32_MAX, "fewer than 2^31 rows", table.describe());
  AnyFloats dy = anyFloats(args, 1);
  float* out = table.as<float>();
  if (Fresh && table.count > 0) {
    cudaCheck(args.kernel, cudaMemsetAsync(out, 0, table.bytes(), args.device.stream));
  }
  if (n == 0) return;
  Workspace held(args.device.memory, sortBytes(n));
  const Placed* sorted = sortIds(args, r.ids, n, v, held.as<char>());
  if (c == 0) return;
  bool packed = c % 4 == 0 && dy.f32() && aligned(dy.data) && aligned(out);
  unsigned across = blocksFor(c, kGradThreads * (packed ? 4 : 1));
  EXPECT(args, across <= 65535, "fewer channels", table.describe());
  launch(args, packed ? embeddingGradKernel<true> : embeddingGradKernel<false>,
         dim3(blocksFor(n, 1), across), dim3(kGradThreads), 0, sorted, n, v, dy, c, out, Fresh);
}

}  // namespace

void registerEmbedding(CudaRegistry& r) {
  r.push_back({"embedding", embedding});
  r.push_back({"embedding.grad", embeddingGrad<true>});
  r.push_back({"embedding.gradAdd", embeddingGrad<false>});
}

}  // namespace lowrank

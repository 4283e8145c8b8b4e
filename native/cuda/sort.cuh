// The places of ids in ascending order of id, and in order of place where ids are equal: a radix
// sort of eight bits a pass whose every pass is stable. No result depends on the order of threads.
#pragma once

#include "pack.cuh"

namespace lowrank {

constexpr int kDigits = 256;  // of a pass
constexpr int kSortThreads = 256;
constexpr int kSortRounds = 4;
constexpr int kSortTile = kSortThreads * kSortRounds;  // ids of a block

// An id, and where it stands.
struct Placed {
  unsigned id;
  int place;
};

// Ids outside [0, limit) are a fault, and become `limit`.
static __global__ void __launch_bounds__(kSortThreads)
    placeKernel(const int* ids, int64_t n, int64_t limit, Placed* out, FaultSink sink) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kSortThreads + threadIdx.x;
  if (i >= n) return;
  int64_t id = ids[i];
  if (id < 0 || id >= limit) {
    report(sink, FaultKind::id, id, limit);
    id = limit;
  }
  out[i] = {static_cast<unsigned>(id), static_cast<int>(i)};
}

// counts [digits, blocks]: how often each digit is in each block's tile.
static __global__ void __launch_bounds__(kSortThreads)
    digitKernel(const Placed* in, int64_t n, int shift, int* counts) {
  SHARED(int, count, [kDigits]);
  count[threadIdx.x] = 0;
  __syncthreads();
  for (int r = 0; r < kSortRounds; r++) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * kSortTile + r * kSortThreads + threadIdx.x;
    if (i < n) atomicAdd(&count[in[i].id >> shift & (kDigits - 1)], 1);
  }
  __syncthreads();
  counts[static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x] = count[threadIdx.x];
}

// Each count becomes the sum of those before it; one block.
static __global__ void __launch_bounds__(1024) offsetKernel(int* counts, int64_t n) {
  SHARED(int, sums, [kWarp]);
  int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  int before = 0;  // the sum of what earlier rounds had
  for (int64_t from = 0; from < n; from += 1024) {
    int64_t i = from + threadIdx.x;
    int own = i < n ? counts[i] : 0, sum = own;
    for (int step = 1; step < kWarp; step *= 2) {
      int left = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(step));
      if (lane >= step) sum += left;
    }
    if (lane == kWarp - 1) sums[warp] = sum;
    __syncthreads();
    int front = before;
    for (int w = 0; w < kWarp; w++) {
      if (w < warp) front += sums[w];
      before += sums[w];
    }
    if (i < n) counts[i] = front + sum - own;
    __syncthreads();
  }
}

// Each element to its digit's next place; `offsets` as offsetKernel leaves them.
static __global__ void __launch_bounds__(kSortThreads)
    scatterKernel(const Placed* in, int64_t n, int shift, const int* offsets, Placed* out) {
  constexpr int kWarps = kSortThreads / kWarp;
  SHARED(int, next, [kDigits]);
  SHARED(int, inWarp, [kWarps][kDigits]);
  int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  int digitOf = static_cast<int>(threadIdx.x);  // which this thread keeps the books of
  next[digitOf] = offsets[static_cast<int64_t>(digitOf) * gridDim.x + blockIdx.x];
  for (int r = 0; r < kSortRounds; r++) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * kSortTile + r * kSortThreads + threadIdx.x;
    for (int w = 0; w < kWarps; w++) inWarp[w][digitOf] = 0;
    __syncthreads();
    Placed own = i < n ? in[i] : Placed{0, 0};
    unsigned digit = own.id >> shift & (kDigits - 1);
    unsigned alike = __ballot_sync(kAllLanes, i < n);  // lanes of the same digit
    for (int bit = 0; bit < 8; bit++) {
      unsigned ones = __ballot_sync(kAllLanes, digit >> bit & 1);
      alike &= digit >> bit & 1 ? ones : ~ones;
    }
    int rank = __popc(alike & ((1u << lane) - 1));
    if (i < n && rank == 0) inWarp[warp][digit] = __popc(alike);
    __syncthreads();
    if (i < n) {
      int at = next[digit] + rank;
      for (int w = 0; w < warp; w++) at += inWarp[w][digit];
      out[at] = own;
    }
    __syncthreads();
    for (int w = 0; w < kWarps; w++) next[digitOf] += inWarp[w][digitOf];
  }
}

// Bytes of scratch memory that a sort takes.
inline uint64_t sortBytes(int64_t n) {
  return static_cast<uint64_t>(n) * sizeof(Placed) * 2 +
         static_cast<uint64_t>(blocksFor(n, kSortTile)) * kDigits * sizeof(int);
}

// Sorts what lies at the start of `scratch`: n of at least 1, ids from 0 to limit, below 2^31.
inline const Placed* sortPlaced(const CudaArgs& args, int64_t n, int64_t limit, char* scratch) {
  Placed* from = reinterpret_cast<Placed*>(scratch);
  Placed* to = from + n;
  int* counts = reinterpret_cast<int*>(to + n);
  unsigned blocks = blocksFor(n, kSortTile);
  dim3 block(kSortThreads);
  for (int shift = 0; shift < 32 && limit >> shift > 0; shift += 8) {
    launch(args, digitKernel, dim3(blocks), block, 0, from, n, shift, counts);
    launch(args, offsetKernel, dim3(1), dim3(1024), 0, counts,
           static_cast<int64_t>(blocks) * kDigits);
    launch(args, scatterKernel, dim3(blocks), block, 0, from, n, shift, counts, to);
    Placed* other = from;
    from = to;
    to = other;
  }
  return from;
}

// The ids, sorted, in `scratch`. Bad ones are last, as `limit`.
inline const Placed* sortIds(const CudaArgs& args, const int* ids, int64_t n, int64_t limit,
                             char* scratch) {
  launch(args, placeKernel, dim3(blocksFor(n, kSortThreads)), dim3(kSortThreads), 0, ids, n, limit,
         reinterpret_cast<Placed*>(scratch), args.sink());
  return sortPlaced(args, n, limit, scratch);
}

}  // namespace lowrank

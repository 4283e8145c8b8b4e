// Matrix products: matmul with batches and transposes, and linear. A product is cut into tiles of
// y, and where those are few, along k, too; the parts of a sum are added in order.
#include <algorithm>

#include "activations.cuh"
#include "matmul.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;

// How a product is cut: `splits` parts of `depth` along k, each part of its own where several, or
// where y is not f32.
struct Cut {
  float* parts;
  int splits;
  int64_t depth;
  bool vectorA, vectorB, vectorY;
};

__device__ __forceinline__ float biasAt(const Product& p, int64_t column) {
  return p.bias ? oneAt(p.bias, p.biasType, column) : 0.0f;
}

// Where the factors of a batch begin.
__device__ __forceinline__ void batchAt(const Batches& s, int64_t batch, int64_t& a, int64_t& b) {
  a = b = 0;
  for (int d = s.axes - 1; d >= 0; d--) {
    a += batch % s.dims[d] * s.a[d];
    b += batch % s.dims[d] * s.b[d];
    batch /= s.dims[d];
  }
}

// Tiles of y [BM, BN], each thread TM × TN of it. Blocks that run together share rows of tiles.
template <int BM, int BN, int BK, int TM, int TN, int kPerSm>
__global__ void __launch_bounds__(kThreads, kPerSm) tileKernel(Product p, Cut cut) {
  constexpr int kAcross = BN / TN, VM = TM < 4 ? TM : 4, VN = TN < 4 ? TN : 4;
  constexpr int kRowApart = BM * VM / TM, kColApart = BN * VN / TN, kGroup = 8;
  static_assert(kAcross * (BM / TM) == kThreads, "a thread for each part");
  SHARED(float, as, [2][BK][BM + 4]);
  SHARED(float, bs, [2][BK][BN + 4]);

  int64_t down = (p.m + BM - 1) / BM, across = (p.n + BN - 1) / BN;
  int64_t tile = blockIdx.x % (down * across), rest = blockIdx.x / (down * across);
  int64_t batch = rest % p.batches.count, split = rest / p.batches.count;
  int64_t group = tile / (kGroup * across), height = down - group * kGroup;
  if (height > kGroup) height = kGroup;
  int64_t m0 = (group * kGroup + tile % (kGroup * across) % height) * BM;
  int64_t n0 = tile % (kGroup * across) / height * BN;
  int64_t k0 = split * cut.depth, end = k0 + cut.depth < p.k ? k0 + cut.depth : p.k;

  Panel a = {p.a.data, p.a.dtype, p.a.row, p.a.col, 0, p.m, p.k, cut.vectorA};
  Panel b = {p.b.data, p.b.dtype, p.b.col, p.b.row, 0, p.n, p.k, cut.vectorB};
  batchAt(p.batches, batch, a.from, b.from);
  Carrier<BM, BK, kThreads> aNext;
  Carrier<BN, BK, kThreads> bNext;
  float sum[TM][TN] = {};
  int tx = static_cast<int>(threadIdx.x) % kAcross, ty = static_cast<int>(threadIdx.x) / kAcross;

  aNext.load(a, m0, k0, end);
  bNext.load(b, n0, k0, end);
  aNext.store(a, &as[0][0][0]);
  bNext.store(b, &bs[0][0][0]);
  __syncthreads();
  int now = 0;
  for (int64_t k = k0; k < end; k += BK, now ^= 1) {
    bool more = k + BK < end;
    if (more) {
      aNext.load(a, m0, k + BK, end);
      bNext.load(b, n0, k + BK, end);
    }
#pragma unroll
    for (int i = 0; i < BK; i++) {
      float left[TM], right[TN];
      fragment<TM, VM>(&as[now][i][ty * VM], kRowApart, left);
      fragment<TN, VN>(&bs[now][i][tx * VN], kColApart, right);
#pragma unroll
      for (int r = 0; r < TM; r++) {
#pragma unroll
        for (int c = 0; c < TN; c++) sum[r][c] = fmaf(left[r], right[c], sum[r][c]);
      }
    }
    if (more) {
      aNext.store(a, &as[now ^ 1][0][0]);
      bNext.store(b, &bs[now ^ 1][0][0]);
    }
    __syncthreads();
  }

  bool whole = !cut.parts;
  float* y = (whole ? static_cast<float*>(p.y) : cut.parts + split * p.batches.count * p.m * p.n) +
             batch * p.m * p.n;
#pragma unroll
  for (int r = 0; r < TM; r++) {
    int64_t row = m0 + r / VM * kRowApart + ty * VM + r % VM;
    if (row >= p.m) continue;
#pragma unroll
    for (int j = 0; j < TN / VN; j++) {
      int64_t column = n0 + j * kColApart + tx * VN;
      float value[VN];
#pragma unroll
      for (int c = 0; c < VN; c++) {
        value[c] = sum[r][j * VN + c];
        if (!whole || column + c >= p.n) continue;
        value[c] = p.alpha * value[c] + biasAt(p, column + c);
        if (p.accumulate) value[c] += y[row * p.n + column + c];
      }
      float* at = y + row * p.n + column;
      if (VN == 4 && cut.vectorY && column + 3 < p.n) {
        *reinterpret_cast<float4*>(at) =
            make_float4(value[0], value[1], value[2 % VN], value[3 % VN]);
        continue;
      }
#pragma unroll
      for (int c = 0; c < VN; c++) {
        if (column + c < p.n) at[c] = value[c];
      }
    }
  }
  if (whole) finishTile<kThreads>(p, batch, m0, BM, n0, BN);
}

// The parts of a sum, in order.
__global__ void __launch_bounds__(kThreads) addPartsKernel(Product p, Cut cut) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  int64_t count = p.batches.count * p.m * p.n;
  if (i >= count) return;
  float sum = cut.parts[i];
  for (int s = 1; s < cut.splits; s++) sum += cut.parts[s * count + i];
  float value = p.alpha * sum + biasAt(p, i % p.n);
  settle(p, i, p.accumulate ? AnyOut(p.y, p.yType)[i] + value : value);
}

// Few rows against a weight read along k: a warp for each column of y reads it once.
template <int M>
__global__ void __launch_bounds__(kThreads) fewRowsKernel(Product p, Cut cut) {
  int64_t column = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (column >= p.n) return;
  int lane = threadIdx.x % kWarp;
  float sum[M] = {};
#pragma unroll(M == 1 ? 4 : 2)
  for (int64_t k = lane * 4; k < p.k; k += 4 * kWarp) {
    float4 w = fourAt(p.b.data, p.b.dtype, column * p.b.col + k, p.k - k, cut.vectorB);
#pragma unroll
    for (int i = 0; i < M; i++) {
      if (i >= p.m) continue;
      float4 x = fourAt(p.a.data, p.a.dtype, i * p.a.row + k, p.k - k, cut.vectorA);
      sum[i] = fmaf(x.x, w.x, sum[i]);
      sum[i] = fmaf(x.y, w.y, sum[i]);
      sum[i] = fmaf(x.z, w.z, sum[i]);
      sum[i] = fmaf(x.w, w.w, sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < M; i++) {
    float total = warpSum(sum[i]);
    if (lane != 0 || i >= p.m) continue;
    int64_t at = i * p.n + column;
    float value = p.alpha * total + biasAt(p, column);
    settle(p, at, p.accumulate ? AnyOut(p.y, p.yType)[at] + value : value);
  }
}

// y = bias, or untouched where it accumulates: what a product over no terms is.
__global__ void __launch_bounds__(kThreads) noTermsKernel(Product p) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < p.batches.count * p.m * p.n) settle(p, i, biasAt(p, i % p.n));
}

// Whether four neighbours of a factor may be read at once wherever a tile begins.
bool vectors(const Factor& f, const Batches& s, const int64_t* steps) {
  int64_t away = f.col == 1 ? f.row : f.col;
  bool fits = reinterpret_cast<uintptr_t>(f.data) % (4 * dtypeSize(f.dtype)) == 0 && away % 4 == 0;
  for (int d = 0; d < s.axes; d++) fits = fits && steps[d] % 4 == 0;
  return fits;
}

constexpr int64_t kLeastDepth = 256;  // terms of a sum that are worth a part of their own
constexpr int64_t kMostSplits = 64;

template <int BM, int BN, int BK, int TM, int TN, int kPerSm>
void tiles(const CudaArgs& args, const Product& p, Cut cut) {
  int64_t count = (p.m + BM - 1) / BM * ((p.n + BN - 1) / BN) * p.batches.count;
  int64_t wanted = (2 * args.device.multiprocessors + count - 1) / count;
  int64_t splits = std::min({wanted, p.k / kLeastDepth, kMostSplits});
  if (args.device.batchInvariant) splits = 1;
  cut.depth = p.k;
  if (splits > 1) cut.depth = (p.k + splits * BK - 1) / (splits * BK) * BK;
  cut.splits = static_cast<int>((p.k + cut.depth - 1) / cut.depth);
  int64_t all = p.batches.count * p.m * p.n;
  uint64_t bytes = static_cast<uint64_t>(cut.splits * all) * sizeof(float);
  bool apart = cut.splits > 1 || p.yType != DType::f32;
  Workspace held = apart ? Workspace(args.device.memory, bytes) : Workspace();
  if (apart) {
    cut.parts = held.as<float>();
    cut.vectorY = p.n % 4 == 0;
  }
  launch(args, tileKernel<BM, BN, BK, TM, TN, kPerSm>, dim3(blocksFor(count * cut.splits, 1)),
         dim3(kThreads), 0, p, cut);
  if (!apart) return;
  launch(args, addPartsKernel, dim3(blocksFor(all, kThreads)), dim3(kThreads), 0, p, cut);
}

void fewRows(const CudaArgs& args, const Product& p, const Cut& cut) {
  dim3 grid(blocksFor(p.n, kThreads / kWarp));
  if (p.m == 1) {
    launch(args, fewRowsKernel<1>, grid, dim3(kThreads), 0, p, cut);
  } else if (p.m <= 4) {
    launch(args, fewRowsKernel<4>, grid, dim3(kThreads), 0, p, cut);
  } else {
    launch(args, fewRowsKernel<8>, grid, dim3(kThreads), 0, p, cut);
  }
}

void product(const CudaArgs& args, const Product& p) {
  int64_t all = p.batches.count * p.m * p.n;
  if (all == 0) return;
  if (p.k > 0) return runProduct(args, p);
  if (p.accumulate) return;
  launch(args, noTermsKernel, dim3(blocksFor(all, kThreads)), dim3(kThreads), 0, p);
}

void matmul(const CudaArgs& args) {
  MatmulCall c = matmulCall(args);
  const View &a = args[0], &b = args[1], &y = args[2];
  Product p = {};
  p.m = c.m;
  p.n = c.n;
  p.k = c.k;
  p.a = {a.data, a.dtype, c.transA ? 1 : c.k, c.transA ? c.m : 1, a.count};
  p.b = {b.data, b.dtype, c.transB ? 1 : c.n, c.transB ? c.k : 1, b.count};
  p.y = y.data;
  p.yType = y.dtype;
  p.alpha = c.alpha;
  p.accumulate = c.accumulate;
  if (c.tall) {
    p.m *= c.batches;
    p.batches.count = 1;
    return product(args, p);
  }
  p.batches.axes = c.batchAxes;
  p.batches.count = c.batches;
  for (int d = 0; d < c.batchAxes; d++) {
    p.batches.dims[d] = y.dims[d];
    p.batches.a[d] = c.aSteps[d];
    p.batches.b[d] = c.bSteps[d];
  }
  product(args, p);
}

// y = x wᵀ (+ b), of which `after` is made.
void layer(const CudaArgs& args, const LinearCall& c, LinearPlaces at, void* y,
           const After& after) {
  const View &x = args[at.x], &w = args[at.w];
  Product p = {};
  if (c.biased) {
    p.bias = args[at.b].data;
    p.biasType = args[at.b].dtype;
  }
  p.m = c.m;
  p.n = c.n;
  p.k = c.k;
  p.a = {x.data, x.dtype, c.k, 1, x.count};
  p.b = {w.data, w.dtype, c.turned ? c.n : 1, c.turned ? 1 : c.k, w.count};
  p.y = y;
  p.yType = c.y.dtype;
  p.alpha = 1;
  p.batches.count = 1;
  p.after = after;
  product(args, p);
}

void linear(const CudaArgs& args) {
  LinearCall c = linearCall(args);
  layer(args, c, {0, 1, 2, 0}, c.y.data, {});
}

void activatedLinear(const CudaArgs& args) {
  ActivatedCall c = activatedCall(args);
  void* y = c.linear.y.data;
  void* inner = c.inner ? args[c.inner].data : y;
  layer(args, c.linear, {0, 1, 2, 0}, inner, {y, nullptr, c.activation, !c.inner});
}

// The gate as a whole, then up, which meets it at its end.
void gatedLinear(const CudaArgs& args) {
  GatedCall c = gatedCall(args);
  void* y = c.up.y.data;
  const View& like = c.up.y;
  uint64_t bytes = c.inner ? 0 : static_cast<uint64_t>(like.count) * dtypeSize(like.dtype);
  Workspace held = bytes ? Workspace(args.device.memory, bytes) : Workspace();
  void* gate = c.inner ? args[c.inner].data : bytes ? held.as<void>() : nullptr;
  void* up = c.inner ? args[c.inner + 1].data : y;
  layer(args, c.gate, {0, 1, 3, 0}, gate, {});
  layer(args, c.up, {0, 2, 4, 0}, up, {y, gate, kSiluOf, !c.inner});
}

}  // namespace

void tiledProduct(const CudaArgs& args, const Product& p) {
  Cut cut = {};
  cut.splits = 1;
  cut.vectorA = vectors(p.a, p.batches, p.batches.a);
  cut.vectorB = vectors(p.b, p.batches, p.batches.b);
  cut.vectorY = p.n % 4 == 0 && reinterpret_cast<uintptr_t>(p.y) % 16 == 0;
  bool invariant = args.device.batchInvariant;
  if (p.m <= 8 && p.batches.count == 1 && p.a.col == 1 && p.b.row == 1 && p.n >= 8 && !invariant) {
    return fewRows(args, p, cut);
  }
  if (p.n <= 16) return tiles<128, 16, 32, 4, 2, 2>(args, p, cut);
  // Where k is not cut, a sum is in the order of k in tiles of any size.
  if (p.m <= 16 && invariant) return tiles<16, 128, 16, 2, 4, 2>(args, p, cut);
  if (p.m <= 16) return tiles<16, 128, 32, 2, 4, 2>(args, p, cut);
  int64_t large = (p.m + 127) / 128 * ((p.n + 127) / 128) * p.batches.count;
  if (large >= args.device.multiprocessors && p.m > 64 && p.n > 64) {
    return tiles<128, 128, 16, 8, 8, 2>(args, p, cut);
  }
  tiles<64, 64, 16, 4, 4, 2>(args, p, cut);
}

void registerMatmul(CudaRegistry& r) {
  r.push_back({"matmul", matmul});
  r.push_back({"linear", linear});
  r.push_back({"activatedLinear", activatedLinear});
  r.push_back({"gatedLinear", gatedLinear});
}

}  // namespace lowrank

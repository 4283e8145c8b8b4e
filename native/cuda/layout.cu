// Moving data without changing it: permute, slice, concat, broadcast, copy, write, fill. Any dtype.
#include <cstring>

#include "move.cuh"

namespace lowrank {

namespace {

// part of y += x; an element of the packed kind is four of them.
template <bool Packed>
__global__ void __launch_bounds__(kMoveThreads) addPartKernel(AnyFloats x, AnyOut y, Move m) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kMoveThreads + threadIdx.x;
  if (i >= m.count) return;
  int64_t rest = i, at = 0;
  for (int d = m.rank - 1; d >= 0; d--) {
    int64_t place;
    rest = divide(rest, m.dims[d], place);
    at += place * m.to[d];
  }
  if constexpr (Packed) {
    float a[4], b[4];
    x.four(i * 4, a);
    AnyFloats{y.data, y.type}.four(at * 4, b);
#pragma unroll
    for (int k = 0; k < 4; k++) b[k] += a[k];
    y.four(at * 4, b);
  } else {
    y.set(at, y[at] + x[i]);
  }
}

// Sixteen bytes of a value that divides them, over and over; `bytes` beyond the last whole sixteen.
__global__ void __launch_bounds__(kMoveThreads)
    fillKernel(uint4* y, int64_t count, uint4 value, int bytes) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kMoveThreads + threadIdx.x;
  if (i < count) {
    y[i] = value;
  } else if (i == count) {
    for (int b = 0; b < bytes; b++) {
      unsigned word = b < 4 ? value.x : b < 8 ? value.y : b < 12 ? value.z : value.w;
      reinterpret_cast<uint8_t*>(y + count)[b] = static_cast<uint8_t>(word >> (b % 4 * 8));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMoveThreads) fillEachKernel(T* y, int64_t count, T value) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kMoveThreads + threadIdx.x;
  if (i < count) y[i] = value;
}

// Launchers.

void permute(const CudaArgs& args) { copyBlock(args, permuteBlock(args)); }

void slice(const CudaArgs& args) { copyBlock(args, sliceBlock(args)); }

void sliceGrad(const CudaArgs& args) {
  Block part = partBlock(args);
  const View& y = args[1];
  if (y.count > 0) {
    cudaCheck(args.kernel, cudaMemsetAsync(y.data, 0, y.bytes(), args.device.stream));
  }
  copyBlock(args, part);
}

void write(const CudaArgs& args) { copyBlock(args, partBlock(args)); }

// Counts by four elements where lines of both are of whole fours; says whether they are.
bool byFours(Move& m) {
  int inner = m.rank - 1;
  bool fits = inner >= 0 && m.to[inner] == 1 && m.from[inner] == 1 && m.dims[inner].n % 4 == 0;
  for (int d = 0; d < inner; d++) fits = fits && m.to[d] % 4 == 0 && m.from[d] % 4 == 0;
  if (!fits) return false;
  m.dims[inner] = m.dims[inner].n / 4;
  for (int d = 0; d < inner; d++) {
    m.to[d] /= 4;
    m.from[d] /= 4;
  }
  m.count /= 4;
  return true;
}

// y's part that begins at the attributes += x.
void sliceGradAdd(const CudaArgs& args) {
  Block part = partBlock(args, true);
  AnyFloats dy = anyFloats(args, 0);
  Move m = moveOf(part);
  if (m.count == 0) return;
  View view = args[1];
  view.data = part.to;
  AnyOut y(view);
  bool packed = dy.packs() && y.packs() && byFours(m);
  launch(args, packed ? addPartKernel<true> : addPartKernel<false>,
         dim3(blocksFor(m.count, kMoveThreads)), dim3(kMoveThreads), 0, dy, y, m);
}

void concat(const CudaArgs& args) {
  concatBlocks(args, [&](const Block& b) { copyBlock(args, b); });
}

void broadcast(const CudaArgs& args) { copyBlock(args, broadcastBlock(args)); }

void copy(const CudaArgs& args) {
  checkCopy(args);
  const View &x = args[0], &y = args[1];
  if (x.count == 0 || x.data == y.data) return;
  cudaCheck(args.kernel, cudaMemcpyAsync(y.data, x.data, x.bytes(), cudaMemcpyDeviceToDevice,
                                         args.device.stream));
}

template <class T>
void fillWith(const CudaArgs& args, T value) {
  const View& y = args[0];
  size_t at = 0;
  if (y.count == 0) return;
  if (!aligned(y.data)) {  // seldom: a part of a tensor
    launch(args, fillEachKernel<T>, dim3(blocksFor(y.count, kMoveThreads)), dim3(kMoveThreads), 0,
           y.as<T>(), y.count, value);
    return;
  }
  unsigned char pattern[16];
  for (; at < 16; at += sizeof(T)) std::memcpy(pattern + at, &value, sizeof(T));
  uint4 wide;
  std::memcpy(&wide, pattern, 16);
  int64_t whole = static_cast<int64_t>(y.bytes() / 16);
  launch(args, fillKernel, dim3(blocksFor(whole + 1, kMoveThreads)), dim3(kMoveThreads), 0,
         y.as<uint4>(), whole, wide, static_cast<int>(y.bytes() % 16));
}

// The value as bf16 or f16, to nearest even; a NaN stays one.
uint16_t halfOf(DType t, float value) {
  if (t == DType::f16) return __half_as_ushort(__float2half_rn(value));
  uint32_t u;
  std::memcpy(&u, &value, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

void fill(const CudaArgs& args) {
  byFillValue(args, halfOf, [&](auto value) { fillWith(args, value); });
}

}  // namespace

void registerLayout(CudaRegistry& r) {
  r.push_back({"permute", permute});
  r.push_back({"slice", slice});
  r.push_back({"slice.grad", sliceGrad});
  r.push_back({"slice.gradAdd", sliceGradAdd});
  r.push_back({"concat", concat});
  r.push_back({"broadcast", broadcast});
  r.push_back({"fill", fill});
  r.push_back({"copy", copy});
  r.push_back({"write", write});
}

}  // namespace lowrank

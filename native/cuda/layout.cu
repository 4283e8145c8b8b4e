// Moving data without changing it: permute, slice, concat, broadcast, copy, write, fill. Any dtype.
#include <cmath>
#include <cstring>

#include "move.cuh"

namespace lowrank {

namespace {

// part of y += x; an element of the packed kind is four f32.
template <bool Packed>
__global__ void __launch_bounds__(kMoveThreads) addPartKernel(AnyFloats x, float* y, Move m) {
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
    loadPack(static_cast<const float*>(x.data) + i * 4, a);
    loadPack(y + at * 4, b);
#pragma unroll
    for (int k = 0; k < 4; k++) b[k] += a[k];
    storePack(y + at * 4, b);
  } else {
    y[at] += x[i];
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

void sameDType(const CudaArgs& args, size_t i, size_t j) {
  EXPECT(args, args[i].dtype == args[j].dtype,
         std::string("one dtype, ") + dtypeName(args[i].dtype), args[j].describe());
}

void permute(const CudaArgs& args) {
  args.atLeast(2, 0);
  const View &x = args[0], &y = args.writable(1);
  args.counts(2, static_cast<size_t>(x.rank));
  sameDType(args, 0, 1);
  int64_t from[kMaxRank], strides[kMaxRank], to[kMaxRank];
  bool used[kMaxRank] = {};
  rowMajorOf(x, from);
  EXPECT(args, y.rank == x.rank, "an output of as many axes", y.describe());
  for (int d = 0; d < x.rank; d++) {
    int axis = args.axis(static_cast<size_t>(d), x.rank);
    EXPECT(args, !used[axis] && y.dims[d] == x.dims[axis],
           "each axis once, and an output of the permuted shape",
           x.describe() + " to " + y.describe());
    used[axis] = true;
    strides[d] = from[axis];
  }
  rowMajorOf(y, to);
  copyStrided(args, y.data, to, x.data, strides, y.dims, y.rank, dtypeSize(x.dtype));
}

// Where, in elements, the part of `whole` lies that begins at the attributes and is shaped as
// `part`.
int64_t partOffset(const CudaArgs& args, const View& whole, const View& part,
                   const int64_t* strides) {
  args.counts(2, static_cast<size_t>(whole.rank));
  EXPECT(args, part.rank == whole.rank, "a part of as many axes as " + whole.describe(),
         part.describe());
  int64_t at = 0;
  for (int d = 0; d < whole.rank; d++) {
    int64_t start = args.integer(static_cast<size_t>(d), 0, whole.dims[d]);
    EXPECT(args, part.dims[d] <= whole.dims[d] - start,
           "a part that lies within " + whole.describe(),
           part.describe() + " from " + std::to_string(start) + " on axis " + std::to_string(d));
    at += start * strides[d];
  }
  return at;
}

void slice(const CudaArgs& args) {
  args.atLeast(2, 0);
  const View &x = args[0], &y = args.writable(1);
  int64_t from[kMaxRank], to[kMaxRank];
  rowMajorOf(x, from);
  rowMajorOf(y, to);
  int64_t size = static_cast<int64_t>(dtypeSize(x.dtype)), at = partOffset(args, x, y, from) * size;
  sameDType(args, 0, 1);
  copyStrided(args, y.data, to, x.data + at, from, y.dims, y.rank, dtypeSize(x.dtype));
}

void place(const CudaArgs& args, bool clear) {
  args.atLeast(2, 0);
  const View &x = args[0], &y = args.writable(1);
  int64_t from[kMaxRank], to[kMaxRank];
  rowMajorOf(x, from);
  rowMajorOf(y, to);
  int64_t size = static_cast<int64_t>(dtypeSize(y.dtype)), at = partOffset(args, y, x, to) * size;
  sameDType(args, 0, 1);
  if (clear && y.count > 0) {
    cudaCheck(args.kernel, cudaMemsetAsync(y.data, 0, y.bytes(), args.device.stream));
  }
  copyStrided(args, y.data + at, to, x.data, from, x.dims, x.rank, dtypeSize(x.dtype));
}

void sliceGrad(const CudaArgs& args) { place(args, true); }

void write(const CudaArgs& args) { place(args, false); }

// y's part that begins at the attributes += x.
void sliceGradAdd(const CudaArgs& args) {
  args.atLeast(2, 0);
  const View &x = args[0], &y = args.out(1);
  int64_t from[kMaxRank], to[kMaxRank];
  rowMajorOf(x, from);
  rowMajorOf(y, to);
  float* part = y.as<float>() + partOffset(args, y, x, to);
  AnyFloats dy = anyFloats(args, 0);
  Move m = joined(x.dims, x.rank, to, from);
  if (m.count == 0) return;
  size_t unit = 4;
  if (dy.f32()) widenUnit(m, reinterpret_cast<char*>(part), x.data, unit);
  if (unit == 8) {  // pairs have no kernel of their own
    m = joined(x.dims, x.rank, to, from);
    unit = 4;
  }
  launch(args, unit == 16 ? addPartKernel<true> : addPartKernel<false>,
         dim3(blocksFor(m.count, kMoveThreads)), dim3(kMoveThreads), 0, dy, part, m);
}

void concat(const CudaArgs& args) {
  args.atLeast(2, 1);
  args.counts(args.count, 1);
  size_t last = args.count - 1;
  const View& y = args.writable(last);
  int axis = args.axis(0, y.rank);
  int64_t to[kMaxRank], from[kMaxRank], at = 0;
  rowMajorOf(y, to);
  for (int pass = 0; pass < 2; pass++) {  // check all, then copy
    at = 0;
    for (size_t i = 0; i < last; i++) {
      const View& x = args[i];
      if (pass == 0) {
        sameDType(args, last, i);
        EXPECT(args, x.rank == y.rank, "inputs of as many axes as " + y.describe(), x.describe());
        for (int d = 0; d < y.rank; d++) {
          EXPECT(args, d == axis || x.dims[d] == y.dims[d], "an input that fits " + y.describe(),
                 x.describe());
        }
      } else {
        rowMajorOf(x, from);
        copyStrided(args, y.data + at * to[axis] * static_cast<int64_t>(dtypeSize(y.dtype)), to,
                    x.data, from, x.dims, x.rank, dtypeSize(y.dtype));
      }
      at += x.dims[axis];
    }
    EXPECT(args, at == y.dims[axis], "an output of " + std::to_string(at) + " along the axis",
           y.describe());
  }
}

void broadcast(const CudaArgs& args) {
  args.counts(2, 0);
  const View &x = args[0], &y = args.writable(1);
  sameDType(args, 0, 1);
  EXPECT(args, x.rank <= y.rank, "an output of at least as many axes", y.describe());
  int64_t from[kMaxRank], to[kMaxRank], step = 1;
  rowMajorOf(y, to);
  for (int d = y.rank - 1, s = x.rank - 1; d >= 0; d--, s--) {
    int64_t n = s >= 0 ? x.dims[s] : 1;
    EXPECT(args, n == 1 || n == y.dims[d], "an input that broadcasts to " + y.describe(),
           x.describe());
    from[d] = n == 1 ? 0 : step;
    step *= n;
  }
  copyStrided(args, y.data, to, x.data, from, y.dims, y.rank, dtypeSize(x.dtype));
}

void copy(const CudaArgs& args) {
  args.counts(2, 0);
  const View &x = args[0], &y = args.writable(1);
  sameDType(args, 0, 1);
  EXPECT(args, x.count == y.count, std::to_string(x.count) + " elements", y.describe());
  if (x.count == 0 || x.data == y.data) return;
  cudaCheck(args.kernel, cudaMemcpyAsync(y.data, x.data, x.bytes(), cudaMemcpyDeviceToDevice,
                                         args.device.stream));
}

template <class T>
void fillWith(const CudaArgs& args, T value) {
  const View& y = args[0];
  size_t at = 0;
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
  args.counts(1, 1);
  const View& y = args.writable(0);
  double value = args.attrs[0];
  float narrow = static_cast<float>(value);
  if (y.count == 0) return;
  // Towards zero; beyond the range its end, NaN 0, as cast does.
  auto whole = [&](double lo, double hi) {
    return std::isnan(value) ? 0.0 : std::fmin(std::fmax(std::trunc(value), lo), hi);
  };
  switch (y.dtype) {
    case DType::f32:
      return fillWith<float>(args, narrow);
    case DType::f64:
      return fillWith<double>(args, value);
    case DType::f16:
    case DType::bf16:
      return fillWith<uint16_t>(args, halfOf(y.dtype, narrow));
    case DType::i32:
      return fillWith<int32_t>(args, static_cast<int32_t>(whole(INT32_MIN, INT32_MAX)));
    case DType::i64:
      return fillWith<int64_t>(
          args, value >= 0x1p63 ? INT64_MAX : static_cast<int64_t>(whole(-0x1p63, 0x1p63)));
    case DType::u8:
      return fillWith<uint8_t>(args, static_cast<uint8_t>(whole(0, 255)));
    case DType::boolean:
      return fillWith<uint8_t>(args, value != 0);
  }
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

// Moving data without changing it: permute, slice, concat, broadcast, copy, write, fill. Any dtype.
#include <cmath>
#include <cstring>

#include "pack.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;     // of a transposition
constexpr int kTileRows = 8;  // of its threads

// A block of `dims` between strided tensors; strides count units of the size that is moved at once.
struct Move {
  int rank;
  int64_t count;
  Divisor dims[kMaxRank];
  int64_t to[kMaxRank], from[kMaxRank];
};

template <class T>
__global__ void __launch_bounds__(kThreads) moveKernel(T* to, const T* from, Move m) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= m.count) return;
  int64_t atTo = 0, atFrom = 0;
  for (int d = m.rank - 1; d >= 0; d--) {
    int64_t place;
    i = divide(i, m.dims[d], place);
    atTo += place * m.to[d];
    atFrom += place * m.from[d];
  }
  to[atTo] = from[atFrom];
}

// Matrices [columns, rows] of `from` become [rows, columns] of `to`; the strides of both inner axes
// are 1, those of the outer ones below, and `batch` are the other axes.
struct Transposition {
  int64_t rows, columns, toStep, fromStep;
  Divisor rowTiles, columnTiles;
  Move batch;
};

template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    transposeKernel(T* to, const T* from, Transposition t) {
  SHARED(T, tile, [kTile][kTile + 1]);
  int64_t rowTile, columnTile;
  int64_t rest = divide(divide(blockIdx.x, t.columnTiles, columnTile), t.rowTiles, rowTile);
  for (int d = t.batch.rank - 1; d >= 0; d--) {
    int64_t place;
    rest = divide(rest, t.batch.dims[d], place);
    to += place * t.batch.to[d];
    from += place * t.batch.from[d];
  }
  int64_t row0 = rowTile * kTile, column0 = columnTile * kTile;
  int x = static_cast<int>(threadIdx.x), y0 = static_cast<int>(threadIdx.y);
#pragma unroll
  for (int y = y0; y < kTile; y += kTileRows) {
    if (row0 + x < t.rows && column0 + y < t.columns) {
      tile[y][x] = from[(column0 + y) * t.fromStep + row0 + x];
    }
  }
  __syncthreads();
#pragma unroll
  for (int y = y0; y < kTile; y += kTileRows) {
    if (row0 + y < t.rows && column0 + x < t.columns) {
      to[(row0 + y) * t.toStep + column0 + x] = tile[x][y];
    }
  }
}

// part of y += x; an element of the packed kind is four f32.
template <bool Packed>
__global__ void __launch_bounds__(kThreads) addPartKernel(AnyFloats x, float* y, Move m) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
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
__global__ void __launch_bounds__(kThreads)
    fillKernel(uint4* y, int64_t count, uint4 value, int bytes) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
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
__global__ void __launch_bounds__(kThreads) fillEachKernel(T* y, int64_t count, T value) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) y[i] = value;
}

// Launchers.

// Axes of one dropped, and neighbours joined that step evenly in both.
Move joined(const int64_t* dims, int rank, const int64_t* to, const int64_t* from) {
  Move m = {};
  m.count = 1;
  for (int d = 0; d < rank; d++) {
    m.count *= dims[d];
    if (dims[d] == 1) continue;
    int last = m.rank - 1;
    if (last >= 0 && m.to[last] == to[d] * dims[d] && m.from[last] == from[d] * dims[d]) {
      m.dims[last] = m.dims[last].n * dims[d];
    } else {
      last = m.rank++;
      m.dims[last] = dims[d];
    }
    m.to[last] = to[d];
    m.from[last] = from[d];
  }
  return m;
}

// Where lines lie together in both, the largest unit up to 16 bytes that they, the strides and the
// addresses are multiples of; `size` becomes it, and m counts it.
void widenUnit(Move& m, const char* to, const char* from, size_t& size) {
  int inner = m.rank - 1;
  if (inner < 0 || m.to[inner] != 1 || m.from[inner] != 1) return;
  int64_t times = static_cast<int64_t>(16 / size);
  auto fits = [&](int64_t n) {
    bool ok = m.dims[inner].n % n == 0 && aligned(to, static_cast<size_t>(n) * size) &&
              aligned(from, static_cast<size_t>(n) * size);
    for (int d = 0; d < inner; d++) ok = ok && m.to[d] % n == 0 && m.from[d] % n == 0;
    return ok;
  };
  while (times > 1 && !fits(times)) times /= 2;
  m.dims[inner] = m.dims[inner].n / times;
  for (int d = 0; d < inner; d++) {
    m.to[d] /= times;
    m.from[d] /= times;
  }
  m.count /= times;
  size *= static_cast<size_t>(times);
}

struct alignas(16) Sixteen {
  uint64_t a, b;
};

// f of a type of that many bytes.
template <class F>
void bySize(size_t size, F&& f) {
  if (size == 16) return f(Sixteen());
  if (size == 8) return f(uint64_t());
  if (size == 4) return f(uint32_t());
  if (size == 2) return f(uint16_t());
  f(uint8_t());
}

// The axis, not the last, along which `from` steps by 1 and which is worth a transposition; or -1.
int turnedAxis(const Move& m) {
  int inner = m.rank - 1;
  if (inner < 1 || m.to[inner] != 1 || m.from[inner] <= 1 || m.dims[inner].n < 4) return -1;
  for (int d = 0; d < inner; d++) {
    if (m.from[d] == 1 && m.dims[d].n >= 4) return d;
  }
  return -1;
}

void transpose(const CudaArgs& args, char* to, const char* from, const Move& m, int axis,
               size_t size) {
  int inner = m.rank - 1;
  Transposition t = {};
  t.rows = m.dims[axis].n;
  t.columns = m.dims[inner].n;
  t.toStep = m.to[axis];
  t.fromStep = m.from[inner];
  int64_t rowTiles = (t.rows + kTile - 1) / kTile, columnTiles = (t.columns + kTile - 1) / kTile;
  t.rowTiles = rowTiles;
  t.columnTiles = columnTiles;
  int64_t blocks = rowTiles * columnTiles;
  for (int d = 0; d < inner; d++) {
    if (d == axis) continue;
    int at = t.batch.rank++;
    t.batch.dims[at] = m.dims[d];
    t.batch.to[at] = m.to[d];
    t.batch.from[at] = m.from[d];
    blocks *= m.dims[d].n;
  }
  bySize(size, [&](auto unit) {
    using T = decltype(unit);
    launch(args, transposeKernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kTile, kTileRows), 0,
           reinterpret_cast<T*>(to), reinterpret_cast<const T*>(from), t);
  });
}

// Copies a block of `dims` between strided tensors; strides in elements, one of `from` may be 0.
void copyStrided(const CudaArgs& args, char* to, const int64_t* toStrides, const char* from,
                 const int64_t* fromStrides, const int64_t* dims, int rank, size_t size) {
  Move m = joined(dims, rank, toStrides, fromStrides);
  if (m.count == 0) return;
  if (m.rank == 0 || (m.rank == 1 && m.to[0] == 1 && m.from[0] == 1)) {
    cudaCheck(args.kernel, cudaMemcpyAsync(to, from, static_cast<size_t>(m.count) * size,
                                           cudaMemcpyDeviceToDevice, args.device.stream));
    return;
  }
  int axis = turnedAxis(m);
  if (axis >= 0) return transpose(args, to, from, m, axis, size);
  widenUnit(m, to, from, size);
  bySize(size, [&](auto unit) {
    using T = decltype(unit);
    launch(args, moveKernel<T>, dim3(blocksFor(m.count, kThreads)), dim3(kThreads), 0,
           reinterpret_cast<T*>(to), reinterpret_cast<const T*>(from), m);
  });
}

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
         dim3(blocksFor(m.count, kThreads)), dim3(kThreads), 0, dy, part, m);
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
    launch(args, fillEachKernel<T>, dim3(blocksFor(y.count, kThreads)), dim3(kThreads), 0,
           y.as<T>(), y.count, value);
    return;
  }
  unsigned char pattern[16];
  for (; at < 16; at += sizeof(T)) std::memcpy(pattern + at, &value, sizeof(T));
  uint4 wide;
  std::memcpy(&wide, pattern, 16);
  int64_t whole = static_cast<int64_t>(y.bytes() / 16);
  launch(args, fillKernel, dim3(blocksFor(whole + 1, kThreads)), dim3(kThreads), 0, y.as<uint4>(),
         whole, wide, static_cast<int>(y.bytes() % 16));
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

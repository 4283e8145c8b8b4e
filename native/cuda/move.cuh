// Copies between strided tensors of any dtype: a line at a time where elements lie together, tiles
// through shared memory where rows and columns change places, else one element a thread.
#pragma once

#include "../common/calls/layout.h"
#include "pack.cuh"

namespace lowrank {

constexpr int kMoveThreads = 256;
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
__global__ void __launch_bounds__(kMoveThreads) moveKernel(T* to, const T* from, Move m) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kMoveThreads + threadIdx.x;
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

// Launchers.

inline Move moveOf(const Block& b) {
  AxisPairs p = joined(b.dims, b.rank, b.toSteps, b.fromSteps);
  Move m = {};
  m.rank = p.rank;
  m.count = p.count;
  for (int d = 0; d < p.rank; d++) {
    m.dims[d] = p.dims[d];
    m.to[d] = p.a[d];
    m.from[d] = p.b[d];
  }
  return m;
}

// Where lines lie together in both, the largest unit up to 16 bytes that they, the strides and the
// addresses are multiples of; `size` becomes it, and m counts it.
inline void widenUnit(Move& m, const char* to, const char* from, size_t& size) {
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
inline int turnedAxis(const Move& m) {
  int inner = m.rank - 1;
  if (inner < 1 || m.to[inner] != 1 || m.from[inner] <= 1 || m.dims[inner].n < 4) return -1;
  for (int d = 0; d < inner; d++) {
    if (m.from[d] == 1 && m.dims[d].n >= 4) return d;
  }
  return -1;
}

inline void transpose(const CudaArgs& args, char* to, const char* from, const Move& m, int axis,
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

inline void copyBlock(const CudaArgs& args, const Block& b) {
  Move m = moveOf(b);
  char* to = b.to;
  const char* from = b.from;
  size_t size = b.size;
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
    launch(args, moveKernel<T>, dim3(blocksFor(m.count, kMoveThreads)), dim3(kMoveThreads), 0,
           reinterpret_cast<T*>(to), reinterpret_cast<const T*>(from), m);
  });
}

}  // namespace lowrank

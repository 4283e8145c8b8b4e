// The sums of reduce.cu: along lines that end at the innermost axis, and along the axes before it.
#pragma once

#include "pack.cuh"

namespace lowrank {

constexpr int kSumThreads = 256;

// Where the elements of a sum lie: n of them for each output, lines of `width` that follow each
// other, in parts of `chunk` elements. `outer` are the reduced axes outside a line.
struct Lines {
  AnyFloats x;
  int64_t outputs, n, width, chunk;
  Divisor parts, line;  // line: width again
  Axes kept, outer;
};

// kLanes threads for each part of each output: y [outputs, parts]. Packed: f32, width and every
// step a multiple of four.
template <int kLanes, bool Packed>
__global__ void __launch_bounds__(kSumThreads) sumLinesKernel(Lines l, float* y) {
  SHARED(float, room, [kSumThreads / kWarp]);
  constexpr int kEach = Packed ? 4 : 1;
  int lane = static_cast<int>(threadIdx.x) % kLanes;
  int64_t unit = static_cast<int64_t>(blockIdx.x) * (kSumThreads / kLanes) + threadIdx.x / kLanes;
  bool active = unit < l.outputs * l.parts.n;
  float sum[4] = {};
  if (active) {
    int64_t part;
    int64_t output = divide(unit, l.parts, part);
    int64_t base = placeOf(output, l.kept), from = part * l.chunk;
    int64_t to = from + l.chunk < l.n ? from + l.chunk : l.n;
#pragma unroll 4
    for (int64_t j = from + lane * kEach; j < to; j += kLanes * kEach) {
      int64_t at = base + j;
      if (l.outer.rank > 0) {
        int64_t i;
        int64_t line = divide(j, l.line, i);
        at = base + placeOf(line, l.outer) + i;
      }
      if constexpr (Packed) {
        float v[4];
        loadPack(static_cast<const float*>(l.x.data) + at, v);
#pragma unroll
        for (int k = 0; k < 4; k++) sum[k] += v[k];
      } else {
        sum[0] += l.x[at];
      }
    }
  }
  float total[1] = {(sum[0] + sum[1]) + (sum[2] + sum[3])};
  if constexpr (kLanes == kSumThreads) {
    blockSum(total, room);
  } else if constexpr (kLanes == kWarp) {
    total[0] = warpSum(total[0]);
  }
  if (active && lane == 0) y[unit] = total[0];
}

// Where the rows of a sum lie: `times` of them for each of `outer` outputs of `width` columns, in
// parts of `chunk` rows.
struct Columns {
  AnyFloats x;
  int64_t width, times, chunk, parts;
  Divisor outer, tiles;
  Axes kept, reduced;
};

constexpr int kRows = kSumThreads / kWarp;

// A warp a row, a lane kEach columns: y [parts, outer, width]. Packed: f32, as above.
template <bool Packed>
__global__ void __launch_bounds__(kSumThreads) sumColumnsKernel(Columns c, float* y) {
  constexpr int kEach = Packed ? 4 : 1;
  SHARED(float, room, [kRows][kWarp * kEach]);
  int lane = static_cast<int>(threadIdx.x) % kWarp, row = static_cast<int>(threadIdx.x) / kWarp;
  int64_t tile, o;
  int64_t rest = divide(blockIdx.x, c.tiles, tile);
  int64_t part = divide(rest, c.outer, o);
  int64_t column = (tile * kWarp + lane) * kEach;
  bool active = column < c.width;
  int64_t base = placeOf(o, c.kept) + column;
  int64_t from = part * c.chunk, to = from + c.chunk < c.times ? from + c.chunk : c.times;
  float sum[kEach] = {};
  if (active) {
#pragma unroll 4
    for (int64_t t = from + row; t < to; t += kRows) {
      int64_t at = base + placeOf(t, c.reduced);
      if constexpr (Packed) {
        float v[4];
        loadPack(static_cast<const float*>(c.x.data) + at, v);
#pragma unroll
        for (int k = 0; k < 4; k++) sum[k] += v[k];
      } else {
        sum[0] += c.x[at];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kEach; k++) room[row][k * kWarp + lane] = sum[k];
  __syncthreads();
  if (row > 0 || !active) return;
  for (int k = 0; k < kEach; k++) {
    float total = 0;
    for (int r = 0; r < kRows; r++) total += room[r][k * kWarp + lane];
    y[(part * c.outer.n + o) * c.width + column + k] = total;
  }
}

}  // namespace lowrank

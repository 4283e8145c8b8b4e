// W + sum of s B A: merging, and the row lengths that DoRA needs. Each reads W once; everything
// beside it is of rank r.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../common/calls/low_rank.h"
#include "kernels.h"

namespace lowrank {

namespace {

constexpr int64_t kTileCols = 512;  // of an f32 tile; with kTileRows it stays in the first cache
constexpr int64_t kTileRows = 8;
constexpr size_t kCached = size_t{4} << 20;  // bytes of a result that may stay in the caches

// Elements [from, from + n) of a tensor as f32, in `block` where they are stored otherwise.
const float* widened(const IsaTable& isa, const View& x, int64_t from, int64_t n, float* block) {
  if (x.dtype == DType::f32) return x.as<float>() + from;
  auto widen = x.dtype == DType::f16 ? isa.widenF16 : isa.widenBf16;
  widen(x.as<uint16_t>() + from, block, n);
  return block;
}

// W + sum of s_i B_i A_i for a stored W [rows, cols] = [out, in], or [in, out] where transposed, a
// tile at a time. The side that runs along the columns is laid out by tiles once.
class LowRankSum {
 public:
  LowRankSum(const Args& args, size_t pairs, bool transposed, const double* scales)
      : args_(args), w_(args[0]), pairs_(pairs), transposed_(transposed), scales_(scales) {
    for (size_t i = 0; i < pairs; i++) rank_ += args[1 + 2 * i].dims[0];
    for (size_t i = 0; i < 2 * pairs; i++) factors_.push_back(floats(args, 1 + i));
    layOut();
  }

  int64_t rows() const { return w_.dims[0]; }
  int64_t cols() const { return w_.dims[1]; }
  int64_t tiles() const { return (cols() + kTileCols - 1) / kTileCols; }
  int64_t tileCols(int64_t tile) const { return std::min(kTileCols, cols() - tile * kTileCols); }
  // Floats that side() fills.
  int64_t sideFloats() const { return kTileRows * rank_; }

  // What of the narrow factors belongs to rows [from, to): [rows, R], scaled.
  void side(int64_t from, int64_t to, float* p) const {
    int64_t k0 = 0;
    for (size_t i = 0; i < pairs_; i++) {
      int64_t r = args_[1 + 2 * i].dims[0];
      const float* f = factors_[2 * i + (transposed_ ? 0 : 1)];
      float s = static_cast<float>(scales_[i]);
      for (int64_t row = from; row < to; row++) {
        for (int64_t k = 0; k < r; k++) {
          p[(row - from) * rank_ + k0 + k] =
              s * (transposed_ ? f[k * rows() + row] : f[row * r + k]);
        }
      }
      k0 += r;
    }
  }

  // Rows [from, to) of a tile into `sum`, rows kTileCols apart.
  void tile(int64_t from, int64_t to, int64_t tile, const float* p, float* sum) const {
    const IsaTable& isa = *args_.context.isa;
    int64_t n = tileCols(tile);
    for (int64_t row = from; row < to; row++) {
      float* at = sum + (row - from) * kTileCols;
      const float* w = widened(isa, w_, row * cols() + tile * kTileCols, n, at);
      if (w != at) std::memcpy(at, w, static_cast<size_t>(n) * sizeof(float));
    }
    float* lines[kTileRows];
    for (int64_t i = 0; i < to - from; i++) lines[i] = sum + i * kTileCols;
    isa.rankUp(lines, 0, to - from, n, p, rank_, wide_ + tile * rank_ * kTileCols, kTileCols);
  }

  // Rows [from, to) of a tile, rounded, into y; whether all of it is finite.
  bool merge(int64_t from, int64_t to, int64_t tile, const float* p, const View& y) const {
    int64_t at = from * cols() + tile * kTileCols;
    RankMerge task = {w_.data + static_cast<size_t>(at) * dtypeSize(w_.dtype),
                      static_cast<int>(w_.dtype),
                      y.data + static_cast<size_t>(at) * dtypeSize(y.dtype),
                      static_cast<int>(y.dtype),
                      cols(),
                      tileCols(tile),
                      p,
                      rank_,
                      wide_ + tile * rank_ * kTileCols,
                      kTileCols,
                      y.bytes() >= kCached};
    return args_.context.isa->rankMerge(&task, to - from);
  }

 private:
  void layOut() {
    const IsaTable& isa = *args_.context.isa;
    held_.emplace_back(args_.context.memory,
                       static_cast<uint64_t>(tiles() * rank_ * kTileCols + 1) * sizeof(float));
    wide_ = held_.back().as<float>();
    float* wide = wide_;
    args_.context.ranges(tiles(), 1, [&](int64_t t, int64_t, int) {
      float* to = wide + t * rank_ * kTileCols;
      int64_t n = tileCols(t), at = t * kTileCols;
      for (size_t i = 0; i < pairs_; i++) {
        int64_t r = args_[1 + 2 * i].dims[0];
        const float* f = factors_[2 * i + (transposed_ ? 1 : 0)];
        if (transposed_) {
          isa.turn(f + at * r, n, r, to, kTileCols);
        } else {
          for (int64_t k = 0; k < r; k++) {
            std::memcpy(to + k * kTileCols, f + k * cols() + at,
                        static_cast<size_t>(n) * sizeof(float));
          }
        }
        to += r * kTileCols;
      }
    });
  }

  const Args& args_;
  const View& w_;
  size_t pairs_;
  bool transposed_;
  const double* scales_;
  int64_t rank_ = 0;
  std::vector<Floats> factors_;
  std::vector<Workspace> held_;
  float* wide_ = nullptr;
};

// y = W + sum of s_i B_i A_i, rounded once; ok [1] tells whether all of y is finite.
void mergeLowRank(const Args& args) {
  size_t pairs = mergePairs(args);
  const View &y = args[args.count - 2], &ok = args[args.count - 1];
  LowRankSum sum(args, pairs, args.integer(0, 0, 1) != 0, args.attrs + 1);
  int64_t own = (sum.sideFloats() + 15) / 16 * 16;
  Workspace held(args.context.memory, static_cast<uint64_t>(own) * sizeof(float) *
                                          static_cast<uint64_t>(args.context.threads));
  float* scratch = held.as<float>();
  std::vector<char> finite(static_cast<size_t>(args.context.threads), 1);
  args.context.ranges(sum.rows(), kTileRows, [&](int64_t from, int64_t to, int worker) {
    float* p = scratch + worker * own;
    sum.side(from, to, p);
    bool good = true;
    for (int64_t t = 0; t < sum.tiles(); t++) good &= sum.merge(from, to, t, p, y);
    if (!good) finite[static_cast<size_t>(worker)] = 0;
  });
  *ok.as<int32_t>() = std::all_of(finite.begin(), finite.end(), [](char c) { return c != 0; });
}

// n [out] = the lengths of the rows of W + s B A [out, in], summed in f64.
void lowRankNorms(const Args& args) {
  checkNorms(args);
  bool transposed = args.integer(0, 0, 1) != 0;
  LowRankSum sum(args, 1, transposed, args.attrs + 1);
  float* lengths = args[3].as<float>();
  const IsaTable& isa = *args.context.isa;
  int64_t side = (sum.sideFloats() + 15) / 16 * 16;
  int64_t own = kTileRows * kTileCols + side + 2 * kTileCols;
  Workspace held(args.context.memory, static_cast<uint64_t>(own) * sizeof(float) *
                                          static_cast<uint64_t>(args.context.threads));
  float* scratch = held.as<float>();
  if (transposed) {
    float asTheyAre[2 * kTileRows];  // a shift of 0 and a factor of 1 for each row
    for (int64_t i = 0; i < 2 * kTileRows; i++) asTheyAre[i] = i % 2 ? 1.0f : 0.0f;
    args.context.ranges(sum.tiles(), 1, [&](int64_t t, int64_t, int worker) {
      float *block = scratch + worker * own, *p = block + kTileRows * kTileCols;
      double* squares = reinterpret_cast<double*>(p + side);
      int64_t n = sum.tileCols(t);
      std::fill(squares, squares + n, 0.0);
      for (int64_t from = 0; from < sum.rows(); from += kTileRows) {
        int64_t to = std::min(from + kTileRows, sum.rows());
        sum.side(from, to, p);
        sum.tile(from, to, t, p, block);
        isa.mulAddTo(block, block, asTheyAre, to - from, kTileCols, squares, n);
      }
      for (int64_t j = 0; j < n; j++) {
        lengths[t * kTileCols + j] = static_cast<float>(std::sqrt(squares[j]));
      }
    });
    return;
  }
  args.context.ranges(sum.rows(), kTileRows, [&](int64_t from, int64_t to, int worker) {
    float *block = scratch + worker * own, *p = block + kTileRows * kTileCols;
    double squares[kTileRows] = {};
    sum.side(from, to, p);
    for (int64_t t = 0; t < sum.tiles(); t++) {
      sum.tile(from, to, t, p, block);
      for (int64_t row = 0; row < to - from; row++) {
        squares[row] += isa.sumSquares(block + row * kTileCols, sum.tileCols(t));
      }
    }
    for (int64_t row = from; row < to; row++) {
      lengths[row] = static_cast<float>(std::sqrt(squares[row - from]));
    }
  });
}

}  // namespace

void registerLora(Registry& r) {
  r.push_back({"mergeLowRank", mergeLowRank});
  r.push_back({"lowRankNorms", lowRankNorms});
}

}  // namespace lowrank

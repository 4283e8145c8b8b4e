// RMS and layer norm over the last axis, and their gradients.
#include <algorithm>
#include <cmath>

#include "../common/calls/rows.h"
#include "kernels.h"

namespace lowrank {

namespace {

struct Row {
  float shift, inverse;  // y = (x - shift) * inverse * w
};

// Mean (0 for RMS norm) and 1/sqrt(variance + eps) of a row.
template <bool Centre>
Row statistics(const IsaTable& isa, const float* x, int64_t n, double eps) {
  double count = static_cast<double>(n), mean = 0, square = 0;
  if (!Centre) {
    square = isa.sumSquares(x, n) / count;
  } else {
    double sums[2];
    isa.moments(x, n, sums);
    mean = sums[0] / count;
    // Around the rounded mean, which is also what is subtracted; in doubles this loses nothing.
    double shift = static_cast<float>(mean);
    square = (sums[1] - 2 * shift * sums[0]) / count + shift * shift;
    square = std::max(square - (mean - shift) * (mean - shift), std::isnan(square) ? NAN : 0.0);
  }
  return {static_cast<float>(mean), static_cast<float>(1 / std::sqrt(square + eps))};
}

void rmsNorm(const Args& args) {
  NormRows a = normCall(args, false);
  Floats w = floats(args, 1);
  const IsaTable& isa = *args.context.isa;
  int64_t n = a.n;
  if (args[0].count == 0) return;
  Lines x(args, args[0], n), y(args, a.out, n);
  args.context.rows(a.rows, n, [&](int64_t from, int64_t to, int worker) {
    for (int64_t r = from; r < to; r++) {
      const float* in = x.read(r, worker);
      Row s = statistics<false>(isa, in, n, a.eps);
      y.write(r, worker, [&](float* out) { isa.scaleMul(in, s.inverse, w, out, n); });
    }
  });
}

void layerNorm(const Args& args) {
  NormRows a = normCall(args, true);
  Floats w = floats(args, 1), b = floats(args, 2);
  const IsaTable& isa = *args.context.isa;
  int64_t n = a.n;
  if (args[0].count == 0) return;
  Lines x(args, args[0], n), y(args, a.out, n);
  args.context.rows(a.rows, n, [&](int64_t from, int64_t to, int worker) {
    for (int64_t r = from; r < to; r++) {
      const float* in = x.read(r, worker);
      Row s = statistics<true>(isa, in, n, a.eps);
      y.write(r, worker, [&](float* out) { isa.normalize(in, s.shift, s.inverse, w, b, out, n); });
    }
  });
}

// With h = (x - mean) i, i = 1/sqrt(var + eps), g = w dy:
//   RMS:   dx = i (g - h mean(g h))
//   layer: dx = i (g - mean(g) - h mean(g h))
template <bool Centre>
void gradInput(const Args& args) {
  NormRows a = normGradInput(args);
  Floats w = floats(args, 1);
  const IsaTable& isa = *args.context.isa;
  int64_t n = a.n;
  if (args[0].count == 0) return;
  Lines x(args, args[0], n), dy(args, args[2], n), dx(args, a.out, n);
  args.context.rows(a.rows, n, [&](int64_t from, int64_t to, int worker) {
    for (int64_t r = from; r < to; r++) {
      const float *in = x.read(r, worker), *d = dy.read(r, worker);
      Row s = statistics<Centre>(isa, in, n, a.eps);
      double i = s.inverse, count = static_cast<double>(n);
      double sums[2] = {};  // of g and of g x
      if (Centre) {
        isa.dots(w, d, in, n, sums);
      } else {
        sums[1] = isa.dot3(w, d, in, n);
      }
      double g = sums[0] / count, gh = (sums[1] / count - g * s.shift) * i;
      double slope = -i * i * gh;
      float shift = static_cast<float>(-i * g - slope * s.shift);
      dx.write(r, worker, [&](float* out) {
        isa.normGrad(w, d, s.inverse, in, static_cast<float>(slope), shift, out, n);
      });
    }
  });
}

// dw = sum over rows of dy (x - mean) i: statistics by row first, then sums by blocks of columns.
template <bool Centre>
void gradWeight(const Args& args) {
  NormRows a = normGradWeight(args);
  Floats x = floats(args, 0), dy = floats(args, 1);
  const IsaTable& isa = *args.context.isa;
  int64_t n = a.n, rows = a.rows;
  Workspace held(args.context.memory, static_cast<uint64_t>(rows) * sizeof(Row));
  Row* stats = held.as<Row>();
  if (n == 0) return;
  args.context.rows(rows, n, [&](int64_t from, int64_t to, int) {
    for (int64_t r = from; r < to; r++) stats[r] = statistics<Centre>(isa, x + r * n, n, a.eps);
  });
  float* dw = a.out.as<float>();
  constexpr int64_t kBlock = 64;
  args.context.rows((n + kBlock - 1) / kBlock, kBlock * rows, [&](int64_t from, int64_t to, int) {
    for (int64_t c = from * kBlock; c < std::min(to * kBlock, n); c += kBlock) {
      int64_t width = std::min(kBlock, n - c);
      double acc[kBlock] = {};
      isa.mulAddTo(dy + c, x + c, &stats->shift, rows, n, acc, width);
      for (int64_t j = 0; j < width; j++) dw[c + j] = static_cast<float>(acc[j]);
    }
  });
}

}  // namespace

void registerNorm(Registry& r) {
  r.push_back({"rmsNorm", rmsNorm});
  r.push_back({"rmsNorm.gradInput", gradInput<false>});
  r.push_back({"rmsNorm.gradWeight", gradWeight<false>});
  r.push_back({"layerNorm", layerNorm});
  r.push_back({"layerNorm.gradInput", gradInput<true>});
  r.push_back({"layerNorm.gradWeight", gradWeight<true>});
}

}  // namespace lowrank

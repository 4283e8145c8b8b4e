// Attention by tiles of queries and keys with a running softmax; only the log-sum-exp is kept, and
// the gradient computes the probabilities again. Tiles lie on fixed places, so that a query's
// result depends on its own keys only.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"

namespace lowrank {

namespace {

constexpr int64_t kQueries = 64;
constexpr int64_t kKeys = 128;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Shape {
  int64_t b, t, s, h, g, d, length, window;
  bool causal;
  float scale;
  const uint8_t* mask;  // [B, S] or null

  // The keys query `i` may see but for the mask: [first, last).
  int64_t last(int64_t i) const {
    return causal ? std::clamp<int64_t>(i + length - t + 1, 0, length) : length;
  }
  int64_t first(int64_t i) const {
    return window > 0 ? std::max<int64_t>(0, i + length - t - window + 1) : 0;
  }
};

Shape check(const Args& args) {
  bool masked = args.integer(0, 0, 1) != 0;
  const View &q = args[0], &k = args[1], &v = args[2];
  EXPECT(args, q.rank == 4 && k.rank == 4 && v.rank == 4, "q, k and v of four axes",
         q.describe() + ", " + k.describe() + " and " + v.describe());
  Shape s = {};
  s.b = q.dims[0];
  s.t = q.dims[1];
  s.h = q.dims[2];
  s.d = q.dims[3];
  s.s = k.dims[1];
  s.g = k.dims[2];
  EXPECT(args, s.g > 0 ? s.h % s.g == 0 : s.h == 0, "query heads a multiple of key heads",
         std::to_string(s.h) + " and " + std::to_string(s.g));
  args.shaped(1, {s.b, s.s, s.g, s.d});
  args.shaped(2, {s.b, s.s, s.g, s.d});
  if (masked) {
    args.shaped(3, {s.b, s.s});
    EXPECT(args, args[3].dtype == DType::u8 || args[3].dtype == DType::boolean, "a mask of u8",
           args[3].describe());
    s.mask = args[3].as<uint8_t>();
  }
  s.causal = args.integer(1, 0, 1) != 0;
  s.scale = static_cast<float>(args.attrs[2]);
  s.window = args.integer(3, 0, INT32_MAX);
  int64_t keyLength = args.integer(4, -1, s.s);
  s.length = keyLength < 0 ? s.s : keyLength;
  return s;
}

struct Matrix {
  const float* data;
  int64_t row, col;
};

// c [m,n] = alpha a b (+ c) on this thread.
void multiply(const IsaTable& isa, int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, float* c,
              int64_t cRow, float alpha, bool accumulate, float* scratch) {
  GemmTask task = gemmTask(m, n, k, {a.data, 0, a.row, a.col}, {b.data, 0, b.row, b.col}, c, cRow);
  task.alpha = alpha;
  task.accumulate = accumulate;
  isa.product.gemm(&task, 0, m, 0, n, scratch);
}

struct Tile {
  int64_t q0, queries, k0, keys;
};

// Hidden scores become -inf; says whether there were any.
bool hide(const Shape& s, int64_t batch, const Tile& t, float* scores) {
  bool any = false;
  for (int64_t i = 0; i < t.queries; i++) {
    float* row = scores + i * kKeys;
    int64_t from = std::clamp<int64_t>(s.first(t.q0 + i) - t.k0, 0, t.keys);
    int64_t to = std::clamp<int64_t>(s.last(t.q0 + i) - t.k0, from, t.keys);
    any = any || from > 0 || to < t.keys;
    std::fill(row, row + from, -kInfinity);
    std::fill(row + to, row + t.keys, -kInfinity);
    if (s.mask) {
      const uint8_t* seen = s.mask + batch * s.s + t.k0;
      for (int64_t j = from; j < to; j++) {
        if (!seen[j]) {
          row[j] = -kInfinity;
          any = true;
        }
      }
    }
  }
  return any;
}

// c [m,n] += p b where a hidden p of 0 must not meet a NaN or infinity of b.
void multiplySeen(int64_t m, int64_t n, int64_t k, const float* p, const float* scores,
                  const float* b, int64_t bRow, float* c, int64_t cRow) {
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < k; j++) {
      if (scores[i * kKeys + j] == -kInfinity) continue;
      for (int64_t e = 0; e < n; e++) c[i * cRow + e] += p[i * kKeys + j] * b[j * bRow + e];
    }
  }
}

bool finiteRows(const IsaTable& isa, const float* x, int64_t rows, int64_t step, int64_t n) {
  for (int64_t i = 0; i < rows; i++) {
    if (!isa.allFinite(x + i * step, n)) return false;
  }
  return true;
}

struct Scratch {
  float *gemm, *scores, *weights, *delta;
  static int64_t size(const IsaTable& isa) {
    return isa.product.scratch + 2 * kQueries * kKeys + 4 * kQueries;
  }
  Scratch(const IsaTable& isa, float* base)
      : gemm(base),
        scores(base + isa.product.scratch),
        weights(scores + kQueries * kKeys),
        delta(weights + kQueries * kKeys) {}
};

// Range of keys that some query of the block sees, widened to tiles.
void visible(const Shape& s, int64_t q0, int64_t queries, int64_t& from, int64_t& to) {
  from = s.first(q0) / kKeys * kKeys;
  to = s.last(q0 + queries - 1);
}

void forwardBlock(const Shape& s, const IsaTable& isa, int64_t batch, int64_t head, int64_t q0,
                  const float* q, const float* k, const float* v, float* y, float* lse,
                  Scratch& w) {
  int64_t queries = std::min(kQueries, s.t - q0), group = head / (s.h / s.g);
  int64_t qRow = s.h * s.d, kRow = s.g * s.d;
  const float* qAt = q + ((batch * s.t + q0) * s.h + head) * s.d;
  float* yAt = y + ((batch * s.t + q0) * s.h + head) * s.d;
  float top[kQueries];
  double sum[kQueries];
  for (int64_t i = 0; i < queries; i++) {
    top[i] = -kInfinity;
    sum[i] = 0;
    std::fill_n(yAt + i * qRow, s.d, 0.0f);
  }
  int64_t from, to;
  visible(s, q0, queries, from, to);
  for (int64_t k0 = from; k0 < to; k0 += kKeys) {
    Tile tile = {q0, queries, k0, std::min(kKeys, to - k0)};
    const float* kAt = k + ((batch * s.s + k0) * s.g + group) * s.d;
    const float* vAt = v + ((batch * s.s + k0) * s.g + group) * s.d;
    multiply(isa, queries, tile.keys, s.d, {qAt, qRow, 1}, {kAt, 1, kRow}, w.scores, kKeys, s.scale,
             false, w.gemm);
    bool hidden = hide(s, batch, tile, w.scores);
    for (int64_t i = 0; i < queries; i++) {
      float* row = w.scores + i * kKeys;
      float* p = w.weights + i * kKeys;
      float best = std::max(top[i], isa.maxOf(row, tile.keys));
      // With nothing seen so far the shift is 0 and every weight exp(-inf) = 0 (or NaN stays NaN).
      float shift = best == -kInfinity ? 0.0f : best;
      double part = isa.expSum(row, 1.0f, shift, p, tile.keys);
      if (best != top[i] && top[i] != -kInfinity) {
        float shrink = std::exp(top[i] - best);
        sum[i] *= shrink;
        isa.affine(yAt + i * qRow, shrink, 0.0f, yAt + i * qRow, s.d);
      }
      sum[i] += part;
      top[i] = best;
    }
    if (hidden && !finiteRows(isa, vAt, tile.keys, kRow, s.d)) {
      multiplySeen(queries, s.d, tile.keys, w.weights, w.scores, vAt, kRow, yAt, qRow);
    } else {
      multiply(isa, queries, s.d, tile.keys, {w.weights, kKeys, 1}, {vAt, kRow, 1}, yAt, qRow, 1.0f,
               true, w.gemm);
    }
  }
  for (int64_t i = 0; i < queries; i++) {
    float* row = yAt + i * qRow;
    if (sum[i] != 0) isa.affine(row, static_cast<float>(1 / sum[i]), 0.0f, row, s.d);
    lse[(batch * s.h + head) * s.t + q0 + i] =
        sum[i] == 0 ? -kInfinity
                    : static_cast<float>(static_cast<double>(top[i]) + std::log(sum[i]));
  }
}

void attention(const Args& args) {
  args.atLeast(5, 5);
  bool masked = args.integer(0, 0, 1) != 0;
  args.counts(masked ? 6 : 5, 5);
  Shape s = check(args);
  Floats q = floats(args, 0), k = floats(args, 1), v = floats(args, 2);
  size_t at = masked ? 4 : 3;
  args.shaped(at, {s.b, s.t, s.h, s.d});
  args.shaped(at + 1, {s.b, s.h, s.t});
  float* y = args.out(at).as<float>();
  float* lse = args.out(at + 1).as<float>();
  const IsaTable& isa = *args.context.isa;
  int64_t blocks = (s.t + kQueries - 1) / kQueries, perTask = Scratch::size(isa);
  Workspace held(args.context.memory,
                 static_cast<uint64_t>(perTask * args.context.threads) * sizeof(float));
  float* scratch = held.as<float>();
  args.context.rows(s.b * s.h * blocks, std::min(kQueries, s.t) * s.length,
                    [&](int64_t from, int64_t to, int worker) {
                      Scratch w(isa, scratch + worker * perTask);
                      for (int64_t i = from; i < to; i++) {
                        int64_t block = i % blocks, head = i / blocks % s.h,
                                batch = i / blocks / s.h;
                        forwardBlock(s, isa, batch, head, block * kQueries, q, k, v, y, lse, w);
                      }
                    });
}

struct Gradient {
  const float *q, *k, *v, *y, *lse, *dy;
  float *dq, *dk, *dv;
};

// For P = exp(scale q k' - lse), D = rowsum(dy y), dP = dy v':
//   dS = scale P (dP - D);  dv += P' dy;  dq += dS k;  dk += dS' q
void backwardBlock(const Shape& s, const IsaTable& isa, int64_t batch, int64_t head, int64_t q0,
                   const Gradient& g, Scratch& w) {
  int64_t queries = std::min(kQueries, s.t - q0), group = head / (s.h / s.g);
  int64_t qRow = s.h * s.d, kRow = s.g * s.d;
  int64_t qAt = ((batch * s.t + q0) * s.h + head) * s.d;
  const float* lse = g.lse + (batch * s.h + head) * s.t + q0;
  for (int64_t i = 0; i < queries; i++) {
    w.delta[i] = static_cast<float>(isa.dot(g.y + qAt + i * qRow, g.dy + qAt + i * qRow, s.d));
    std::fill_n(g.dq + qAt + i * qRow, s.d, 0.0f);
  }
  int64_t from, to;
  visible(s, q0, queries, from, to);
  for (int64_t k0 = from; k0 < to; k0 += kKeys) {
    Tile tile = {q0, queries, k0, std::min(kKeys, to - k0)};
    int64_t kAt = ((batch * s.s + k0) * s.g + group) * s.d;
    multiply(isa, queries, tile.keys, s.d, {g.q + qAt, qRow, 1}, {g.k + kAt, 1, kRow}, w.scores,
             kKeys, s.scale, false, w.gemm);
    hide(s, batch, tile, w.scores);
    for (int64_t i = 0; i < queries; i++) {
      float* row = w.scores + i * kKeys;
      if (lse[i] == -kInfinity) {
        std::fill_n(row, tile.keys, 0.0f);
      } else {
        isa.expSum(row, 1.0f, lse[i], row, tile.keys);
      }
    }
    multiply(isa, tile.keys, s.d, queries, {w.scores, 1, kKeys}, {g.dy + qAt, qRow, 1}, g.dv + kAt,
             kRow, 1.0f, true, w.gemm);
    multiply(isa, queries, tile.keys, s.d, {g.dy + qAt, qRow, 1}, {g.v + kAt, 1, kRow}, w.weights,
             kKeys, s.scale, false, w.gemm);
    for (int64_t i = 0; i < queries; i++) {
      isa.softmaxGrad(w.scores + i * kKeys, w.weights + i * kKeys, w.delta[i] * s.scale,
                      w.weights + i * kKeys, tile.keys);
    }
    multiply(isa, queries, s.d, tile.keys, {w.weights, kKeys, 1}, {g.k + kAt, kRow, 1}, g.dq + qAt,
             qRow, 1.0f, true, w.gemm);
    multiply(isa, tile.keys, s.d, queries, {w.weights, 1, kKeys}, {g.q + qAt, qRow, 1}, g.dk + kAt,
             kRow, 1.0f, true, w.gemm);
  }
}

// One task for each batch and key head: its query heads and blocks follow in order.
void attentionGrad(const Args& args) {
  args.atLeast(9, 5);
  bool masked = args.integer(0, 0, 1) != 0;
  size_t at = masked ? 4 : 3;
  args.counts(at + 6, 5);
  Shape s = check(args);
  Floats q = floats(args, 0), k = floats(args, 1), v = floats(args, 2);
  Floats y = floats(args, at), lse = floats(args, at + 1), dy = floats(args, at + 2);
  args.shaped(at, {s.b, s.t, s.h, s.d});
  args.shaped(at + 1, {s.b, s.h, s.t});
  args.shaped(at + 2, {s.b, s.t, s.h, s.d});
  args.sameShape(0, at + 3);
  args.sameShape(1, at + 4);
  args.sameShape(2, at + 5);
  Gradient g = {q,
                k,
                v,
                y,
                lse,
                dy,
                args.out(at + 3).as<float>(),
                args.out(at + 4).as<float>(),
                args.out(at + 5).as<float>()};
  const IsaTable& isa = *args.context.isa;
  int64_t perTask = Scratch::size(isa), ratio = s.g > 0 ? s.h / s.g : 0;
  Workspace held(args.context.memory,
                 static_cast<uint64_t>(perTask * args.context.threads) * sizeof(float));
  float* scratch = held.as<float>();
  args.context.rows(s.b * s.g, ratio * s.t * s.length, [&](int64_t from, int64_t to, int worker) {
    Scratch w(isa, scratch + worker * perTask);
    for (int64_t i = from; i < to; i++) {
      int64_t batch = i / s.g, group = i % s.g;
      for (int64_t j = 0; j < s.s; j++) {
        int64_t row = ((batch * s.s + j) * s.g + group) * s.d;
        std::fill_n(g.dk + row, s.d, 0.0f);
        std::fill_n(g.dv + row, s.d, 0.0f);
      }
      for (int64_t head = group * ratio; head < (group + 1) * ratio; head++) {
        for (int64_t q0 = 0; q0 < s.t; q0 += kQueries) backwardBlock(s, isa, batch, head, q0, g, w);
      }
    }
  });
}

}  // namespace

void registerAttention(Registry& r) {
  r.push_back({"attention", attention});
  r.push_back({"attention.grad", attentionGrad});
}

}  // namespace lowrank

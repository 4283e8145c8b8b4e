// The gradient of attention: the probabilities of a tile again, from the log-sum-exp, and with them
// its part of every gradient.
#include "attention.h"

namespace lowrank {

using namespace tiles;

namespace {

struct Gradient {
  const float *q, *k, *v, *y, *lse, *dy;
  float *dq, *dk, *dv;
};

// Where a query head's part of the gradients of one key head goes, keys `row` elements apart.
struct Keys {
  float *dk, *dv;
  int64_t row;
};

// P and dS of a strip, in scores and in weights, 0 where they are hidden; and dq += dS k.
void stripGrad(const Shape& s, const IsaTable& isa, int64_t batch, const Tile& t,
               const Strip& strip, const float* q, const float* dy, const float* lse, float* dq,
               Scratch& w) {
  score(s, isa, batch, t, strip, q, w);
  multiply(isa, strip.rows, strip.cols, {0, s.d}, dy + strip.row * s.queryRow(), s.queryRow(),
           {w.valuesAt(t.k0), s.d}, w.weights + strip.row * kKeys, kKeys, s.scale, false, w.gemm);
  for (int64_t i = strip.row; i < strip.row + strip.rows; i++) {
    Range seen = t.seen(s, i);
    if (lse[i] == -kInfinity) seen.to = seen.from;
    float *p = w.scores + i * kKeys, *ds = w.weights + i * kKeys;
    isa.expSum(p + seen.from, 1.0f, lse[i], p + seen.from, seen.size());
    isa.softmaxGrad(p + seen.from, ds + seen.from, w.delta[i] * s.scale, ds + seen.from,
                    seen.size());
    clearUnseen(p, seen, strip.seen);
    clearUnseen(ds, seen, strip.seen);
  }
  multiply(isa, strip.rows, {0, s.d}, strip.seen, w.weights + strip.row * kKeys, kKeys,
           {w.keyRowsAt(t.k0), t.keys}, dq + strip.row * s.queryRow(), s.queryRow(), 1.0f, true,
           w.gemm);
}

// c [keys, D] += p' b for the tile's p [queries, keys] and packed b [queries, D].
void addTurned(const Shape& s, const IsaTable& isa, const Tile& t, const float* p, const float* b,
               float* c, int64_t cRow, Scratch& w) {
  const GemmKernels& g = isa.product;
  Range seen = t.seenByAny(s);
  int64_t chunk = t.whole(s) ? t.keys : 2 * g.rowTile, offset = s.length - s.t;
  for (int64_t j = seen.from; j < seen.to; j += chunk) {
    int64_t keys = std::min(chunk, seen.to - j), end = t.k0 + j + keys;
    // The queries of the block that may see some of the keys.
    Range rows = {0, t.queries};
    if (s.causal) rows.from = std::clamp<int64_t>(t.k0 + j - offset - t.q0, 0, t.queries);
    if (s.window > 0) {
      rows.to = std::clamp<int64_t>(end - 1 + s.window - offset - t.q0, rows.from, t.queries);
    }
    if (rows.size() == 0) continue;
    int64_t width = rows.whole(t.queries) ? s.d : g.colTile;
    for (int64_t e = 0; e < s.d; e += width) {
      int64_t n = std::min(width, s.d - e);
      GemmTask task = gemmTask(keys, n, rows.size(), {p + rows.from * kKeys + j, 0, 1, kKeys}, {},
                               c + j * cRow + e, cRow);
      task.accumulate = true;
      task.bPack = b + e * t.queries + (rows.from ? rows.from * g.paddedCols(n) : 0);
      g.gemm(&task, 0, keys, 0, n, w.gemm);
    }
  }
}

// For P = exp(scale q k' - lse), D = rowsum(dy y), dP = dy v':
//   dS = scale P (dP - D);  dv += P' dy;  dq += dS k;  dk += dS' q
void backwardBlock(const Shape& s, const IsaTable& isa, int64_t batch, int64_t head, int64_t q0,
                   const Gradient& g, const Keys& keys, Scratch& w) {
  int64_t queries = std::min(kQueries, s.t - q0), row = s.queryRow();
  int64_t at = ((batch * s.t + q0) * s.h + head) * s.d;
  const float *q = g.q + at, *dy = g.dy + at, *lse = g.lse + (batch * s.h + head) * s.t + q0;
  float* dq = g.dq + at;
  for (int64_t i = 0; i < queries; i++) {
    w.delta[i] = static_cast<float>(isa.dot(g.y + at + i * row, dy + i * row, s.d));
    std::fill_n(dq + i * row, s.d, 0.0f);
  }
  packPanels(isa, q, row, 1, s.d, queries, w.q);
  packPanels(isa, dy, row, 1, s.d, queries, w.dy);
  eachTile(s, q0, [&](const Tile& t) {
    eachStrip(s, isa, t,
              [&](const Strip& strip) { stripGrad(s, isa, batch, t, strip, q, dy, lse, dq, w); });
    Range seen = t.seenByAny(s);
    for (int64_t i = 0; i < t.queries && !t.whole(s); i++) {
      clearUnseen(w.scores + i * kKeys, t.seen(s, i), seen);
      clearUnseen(w.weights + i * kKeys, t.seen(s, i), seen);
    }
    int64_t at = t.k0 * keys.row;
    addTurned(s, isa, t, w.scores, w.dy, keys.dv + at, keys.row, w);
    addTurned(s, isa, t, w.weights, w.q, keys.dk + at, keys.row, w);
  });
}

// All of one query head.
void backwardHead(const Shape& s, const IsaTable& isa, int64_t batch, int64_t head,
                  const Gradient& g, const Keys& keys, Scratch& w) {
  for (int64_t j = 0; j < s.s; j++) {
    std::fill_n(keys.dk + j * keys.row, s.d, 0.0f);
    std::fill_n(keys.dv + j * keys.row, s.d, 0.0f);
  }
  for (int64_t q0 = 0; q0 < s.t; q0 += kQueries) {
    backwardBlock(s, isa, batch, head, q0, g, keys, w);
  }
}

void add(const Shape& s, const IsaTable& isa, const Keys& from, const Keys& to) {
  for (int64_t j = 0; j < s.s; j++) {
    isa.axpy(1.0f, from.dk + j * from.row, to.dk + j * to.row, s.d);
    isa.axpy(1.0f, from.dv + j * from.row, to.dv + j * to.row, s.d);
  }
}

// A key head's gradient is its first query head's part and then, one by one, those of the others,
// whether a task computes them all or each is a task by itself.
void backward(const Args& args, const Shape& s, const Gradient& g) {
  Context& c = args.context;
  const IsaTable& isa = *c.isa;
  int64_t ratio = s.ratio(), groups = s.b * s.g, part = s.s * s.d, work = s.t * s.length;
  if (ratio == 0) return;
  bool apart = ratio > 1 && groups < 4 * c.threads;
  int64_t size = Scratch::size(s, isa, s.tiles(), 3);
  int64_t parts = ratio == 1 ? 0 : apart ? groups * (ratio - 1) : c.threads;
  Workspace held(c.memory,
                 static_cast<uint64_t>(size * c.threads + 2 * parts * part) * sizeof(float));
  float *scratch = held.as<float>(), *partial = scratch + size * c.threads;
  auto whole = [&](int64_t i) {
    int64_t at = (i / s.g * s.s * s.g + i % s.g) * s.d;
    return Keys{g.dk + at, g.dv + at, s.keyRow()};
  };
  auto own = [&](int64_t i) {
    return Keys{partial + 2 * i * part, partial + (2 * i + 1) * part, s.d};
  };
  auto pack = [&](int64_t i, Scratch& w) {
    int64_t at = (i / s.g * s.s * s.g + i % s.g) * s.d;
    packHead(s, isa, g.k + at, g.v + at, {0, s.length}, true, w);
  };
  if (!apart) {
    c.rows(groups, ratio * work, [&](int64_t from, int64_t to, int worker) {
      Scratch w(s, isa, s.tiles(), scratch + worker * size);
      for (int64_t i = from; i < to; i++) {
        pack(i, w);
        for (int64_t r = 0; r < ratio; r++) {
          Keys keys = r == 0 ? whole(i) : own(worker);
          backwardHead(s, isa, i / s.g, i % s.g * ratio + r, g, keys, w);
          if (r > 0) add(s, isa, keys, whole(i));
        }
      }
    });
    return;
  }
  c.rows(groups * ratio, work, [&](int64_t from, int64_t to, int worker) {
    Scratch w(s, isa, s.tiles(), scratch + worker * size);
    for (int64_t task = from; task < to; task++) {
      int64_t i = task / ratio, r = task % ratio;
      pack(i, w);
      Keys keys = r == 0 ? whole(i) : own(i * (ratio - 1) + r - 1);
      backwardHead(s, isa, i / s.g, i % s.g * ratio + r, g, keys, w);
    }
  });
  c.rows(groups, 2 * ratio * part, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      for (int64_t r = 1; r < ratio; r++) add(s, isa, own(i * (ratio - 1) + r - 1), whole(i));
    }
  });
}

}  // namespace

void attentionGrad(const Args& args) {
  size_t at;
  Shape s = {attentionGradCall(args, at)};
  Floats q = floats(args, 0), k = floats(args, 1), v = floats(args, 2);
  Floats y = floats(args, at), lse = floats(args, at + 1), dy = floats(args, at + 2);
  Activations dq(args, args[at + 3]), dk(args, args[at + 4]), dv(args, args[at + 5]);
  Gradient g = {q, k, v, y, lse, dy, dq, dk, dv};
  backward(args, s, g);
  for (Activations* gradient : {&dq, &dk, &dv}) gradient->settle();
}

}  // namespace lowrank

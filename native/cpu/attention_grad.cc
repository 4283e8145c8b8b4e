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

// Where a query head's part of the gradients of one key head goes, keys `row` elements apart; whole
// or added to what is there.
struct Keys {
  float *dk, *dv;
  int64_t row;
  bool add;
};

// A worker's memory: P and dS of a tile; the queries' block of q, dy and dq; and of a tile of keys
// the turned keys and values, the keys, dk, dv and the mask.
struct Scratch {
  float *p, *ds, *lse, *delta, *mask, *q, *dy, *dq, *keys, *values, *keyRows, *dk, *dv;
  Fetch fetch = {};  // what the next block reads and writes

  static int64_t size(const Shape& s) {
    return 2 * kQueries * kKeys + 2 * kQueries + kKeys + 3 * s.block() + 5 * s.tile();
  }
  Scratch(const Shape& s, float* base) : p(base) {
    ds = p + kQueries * kKeys;
    delta = ds + kQueries * kKeys;
    lse = delta + kQueries;
    mask = lse + kQueries;
    q = mask + kKeys;
    dy = q + s.block();
    dq = dy + s.block();
    keys = dq + s.block();
    values = keys + s.tile();
    keyRows = values + s.tile();
    dk = keyRows + s.tile();
    dv = dk + s.tile();
  }
};

// Packs a tile of one key head. Says whether the mask hides any of it.
bool packTile(const Shape& s, const IsaTable& isa, int64_t batch, int64_t k0, const float* k,
              const float* v, Scratch& w) {
  const AttentionKernels& a = isa.attention;
  int64_t n = std::min(kKeys, s.length - k0), at = k0 * s.keyRow();
  a.turn(k + at, s.keyRow(), n, s.d, w.keys);
  a.turn(v + at, s.keyRow(), n, s.d, w.values);
  a.take(k + at, s.keyRow(), n, s.d, kKeys, w.keyRows);
  if (!s.mask) return false;
  const uint8_t* seen = s.mask + batch * s.s + k0;
  bool any = false;
  for (int64_t j = 0; j < kKeys; j++) {
    w.mask[j] = j < n && seen[j] ? 1.0f : 0.0f;
    any |= j < n && !seen[j];
  }
  return any;
}

// One tile of a query head. For P = exp(scale q k' - lse), D = rowsum(dy y), dP = dy v':
//   dS = scale P (dP - D);  dv += P' dy;  dq += dS k;  dk += dS' q
void backwardBlock(const Shape& s, const IsaTable& isa, const Tile& t, int64_t at, const float* lse,
                   const Gradient& g, bool masked, Scratch& w) {
  const AttentionKernels& a = isa.attention;
  int64_t row = s.queryRow();
  Range any = t.seenByAny(s);
  Span seen[kQueries], kept[kQueries], seeing[kKeys];
  t.spans(s, seen);
  t.seeing(s, any, seeing);
  bool partial = masked || !t.whole(s);
  for (int64_t i = 0; i < t.queries; i++) {
    bool none = lse[i] == -kInfinity;
    kept[i] = none ? Span{0, 0} : seen[i];
    partial |= none;
  }
  a.take(g.q + at, row, t.queries, s.d, kQueries, w.q);
  a.take(g.dy + at, row, t.queries, s.d, kQueries, w.dy);
  a.rowDots(g.y + at, g.dy + at, row, t.queries, s.d, s.scale, w.delta);
  AttentionTile tile = {
      w.q,  w.dy,    w.keys,    w.values, lse,     w.delta, masked ? w.mask : nullptr,
      seen, kept,    t.queries, s.d,      s.scale, partial, w.p,
      w.ds, &w.fetch};
  a.gradTile(&tile);
  int64_t rows = any.from * kTileChannels;
  a.turnedTimes(w.p + any.from, seeing, any.size(), w.dy, s.d, w.dv + rows, &w.fetch);
  a.turnedTimes(w.ds + any.from, seeing, any.size(), w.q, s.d, w.dk + rows, &w.fetch);
  std::fill_n(w.dq, s.block(), 0.0f);
  a.times(w.ds, seen, t.queries, w.keyRows, s.d, w.dq, &w.fetch);
  bool more = t.k0 > s.first(t.q0) / kKeys * kKeys;
  a.put(w.dq, kQueries, t.queries, s.d, nullptr, more, g.dq + at, row);
}

// What the block of queries from q0 on reads and writes.
void fetchBlock(const Shape& s, const Gradient& g, int64_t batch, int64_t head, int64_t q0,
                Fetch& f) {
  int64_t rows = std::min(kQueries, s.t - q0), row = s.queryRow();
  int64_t at = s.query(batch, head) + q0 * row;
  for (const float* x : {static_cast<const float*>(g.dq), g.y, g.dy, g.q}) {
    fetchHead(f, x + at, row, rows, s.d);
  }
}

// What follows a query head's part of a tile: the next head of the task, or the next task's.
void fetchNext(const Shape& s, const Gradient& g, int64_t batch, int64_t head, int64_t k0,
               bool last, Fetch& f) {
  int64_t group = head / s.ratio();
  if (!last) return fetchBlock(s, g, batch, head + 1, k0 / kQueries * kQueries, f);
  k0 += kKeys;
  if (k0 >= s.length) {
    k0 = 0;
    group++;
    batch += group / s.g;
    group %= s.g;
    if (batch >= s.b) return;
  }
  int64_t at = s.key(batch, group) + k0 * s.keyRow(), rows = std::min(kKeys, s.length - k0);
  fetchBlock(s, g, batch, group * s.ratio(), std::min(k0, s.t - 1) / kQueries * kQueries, f);
  fetchHead(f, g.v + at, s.keyRow(), rows, s.d);
  fetchHead(f, g.k + at, s.keyRow(), rows, s.d);
}

// A query head's part of the gradients of a tile of keys.
void backwardTile(const Shape& s, const IsaTable& isa, int64_t batch, int64_t head, int64_t k0,
                  const Gradient& g, bool masked, bool last, const Keys& to, Scratch& w) {
  std::fill_n(w.dk, 2 * s.tile(), 0.0f);
  for (int64_t q0 = 0; q0 < s.t; q0 += kQueries) {
    Tile t = Tile::at(s, q0, k0);
    if (t.seenByAny(s).size() <= 0) continue;
    int64_t at = s.query(batch, head) + q0 * s.queryRow();
    w.fetch.count = 0;
    if (q0 + kQueries < s.t) {
      fetchBlock(s, g, batch, head, q0 + kQueries, w.fetch);
    } else {
      fetchNext(s, g, batch, head, k0, last, w.fetch);
    }
    backwardBlock(s, isa, t, at, g.lse + (batch * s.h + head) * s.t + q0, g, masked, w);
  }
  int64_t n = std::min(kKeys, s.length - k0), at = k0 * to.row;
  isa.attention.put(w.dk, kKeys, n, s.d, nullptr, to.add, to.dk + at, to.row);
  isa.attention.put(w.dv, kKeys, n, s.d, nullptr, to.add, to.dv + at, to.row);
}

void clearRows(float* x, int64_t from, int64_t to, int64_t row, int64_t d) {
  for (int64_t i = from; i < to; i++) std::fill_n(x + i * row, d, 0.0f);
}

// Query heads [r0, r1) of a key head; to(r) says where their parts go.
template <class F>
void backwardHeads(const Shape& s, const IsaTable& isa, int64_t batch, int64_t group, int64_t r0,
                   int64_t r1, const Gradient& g, F to, Scratch& w) {
  int64_t first = group * s.ratio(), at = s.key(batch, group);
  // Queries and keys that meet no tile.
  for (int64_t r = r0; r < r1; r++) {
    for (int64_t q0 = 0; q0 < s.t; q0 += kQueries) {
      int64_t end = std::min(q0 + kQueries, s.t);
      if (s.last(end - 1) > s.first(q0) / kKeys * kKeys) continue;
      clearRows(g.dq + s.query(batch, first + r), q0, end, s.queryRow(), s.d);
    }
    Keys keys = to(r);
    if (keys.add) continue;
    clearRows(keys.dk, s.length, s.s, keys.row, s.d);
    clearRows(keys.dv, s.length, s.s, keys.row, s.d);
  }
  for (int64_t k0 = 0; k0 < s.length; k0 += kKeys) {
    bool masked = packTile(s, isa, batch, k0, g.k + at, g.v + at, w);
    for (int64_t r = r0; r < r1; r++) {
      backwardTile(s, isa, batch, first + r, k0, g, masked, r + 1 == r1, to(r), w);
    }
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
  int64_t size = Scratch::size(s), parts = apart ? groups * (ratio - 1) : 0;
  Workspace held(c.memory,
                 static_cast<uint64_t>(size * c.threads + 2 * parts * part) * sizeof(float));
  float *scratch = held.as<float>(), *partial = scratch + size * c.threads;
  auto whole = [&](int64_t i, bool more) {
    int64_t at = s.key(i / s.g, i % s.g);
    return Keys{g.dk + at, g.dv + at, s.keyRow(), more};
  };
  auto own = [&](int64_t i) {
    return Keys{partial + 2 * i * part, partial + (2 * i + 1) * part, s.d, false};
  };
  if (!apart) {
    c.rows(groups, ratio * work, [&](int64_t from, int64_t to, int worker) {
      Scratch w(s, scratch + worker * size);
      for (int64_t i = from; i < to; i++) {
        auto place = [&](int64_t r) { return whole(i, r > 0); };
        backwardHeads(s, isa, i / s.g, i % s.g, 0, ratio, g, place, w);
      }
    });
    return;
  }
  c.rows(groups * ratio, work, [&](int64_t from, int64_t to, int worker) {
    Scratch w(s, scratch + worker * size);
    for (int64_t task = from; task < to; task++) {
      int64_t i = task / ratio, r = task % ratio;
      auto place = [&](int64_t) { return r == 0 ? whole(i, false) : own(i * (ratio - 1) + r - 1); };
      backwardHeads(s, isa, i / s.g, i % s.g, r, r + 1, g, place, w);
    }
  });
  c.rows(groups, 2 * ratio * part, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      for (int64_t r = 1; r < ratio; r++) add(s, isa, own(i * (ratio - 1) + r - 1), whole(i, true));
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

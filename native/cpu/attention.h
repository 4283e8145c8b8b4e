// What attention and its gradient share: tiles of queries and keys, and what of a tile is seen.
#pragma once

#include <algorithm>
#include <limits>

#include "../common/calls/attention.h"
#include "kernels.h"

namespace lowrank::tiles {

constexpr int64_t kQueries = kTileQueries;
constexpr int64_t kKeys = kTileKeys;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Range {
  int64_t from, to;
  int64_t size() const { return to - from; }
  bool whole(int64_t n) const { return from == 0 && to == n; }
};

struct Shape : AttentionCall {
  // The keys query `i` may see but for the mask: [first, last).
  int64_t last(int64_t i) const {
    return causal ? std::clamp<int64_t>(i + length - t + 1, 0, length) : length;
  }
  int64_t first(int64_t i) const {
    return window > 0 ? std::max<int64_t>(0, i + length - t - window + 1) : 0;
  }
  int64_t queryRow() const { return h * d; }
  int64_t keyRow() const { return g * d; }
  int64_t ratio() const { return g > 0 ? h / g : 0; }
  int64_t tiles() const { return (length + kKeys - 1) / kKeys; }
  int64_t blocks() const { return (t + kQueries - 1) / kQueries; }
  // Floats of a block of queries and of a tile of keys in chunks, which serve it turned, too.
  int64_t chunks() const { return (d + kTileChannels - 1) / kTileChannels; }
  int64_t block() const { return chunks() * kQueries * kTileChannels; }
  int64_t tile() const { return chunks() * kKeys * kTileChannels; }
  // Where a head's first row begins in q and in k.
  int64_t query(int64_t batch, int64_t head) const { return (batch * t * h + head) * d; }
  int64_t key(int64_t batch, int64_t group) const { return (batch * s * g + group) * d; }
};

// A tile: queries [q0, q0 + queries) and keys [k0, k0 + keys).
struct Tile {
  int64_t q0, queries, k0, keys;

  static Tile at(const Shape& s, int64_t q0, int64_t k0) {
    return {q0, std::min(kQueries, s.t - q0), k0, std::min(kKeys, s.length - k0)};
  }
  // The keys of it, counted from k0, that query q0 + i may see but for the mask.
  Range seen(const Shape& s, int64_t i) const {
    int64_t from = std::clamp<int64_t>(s.first(q0 + i) - k0, 0, keys);
    return {from, std::clamp<int64_t>(s.last(q0 + i) - k0, from, keys)};
  }
  Range seenByAny(const Shape& s) const { return {seen(s, 0).from, seen(s, queries - 1).to}; }
  bool whole(const Shape& s) const {
    return seen(s, 0).whole(keys) && seen(s, queries - 1).whole(keys);
  }
  // The same for each query, and for each key of `any` the queries that see it, none beyond what
  // its neighbours' strips may be cut to.
  void spans(const Shape& s, Span* of) const {
    for (int64_t i = 0; i < queries; i++) {
      Range r = seen(s, i);
      of[i] = {static_cast<int32_t>(r.from), static_cast<int32_t>(r.to)};
    }
  }
  void seeing(const Shape& s, Range any, Span* of) const {
    int64_t behind = k0 - (s.length - s.t) - q0;  // key j is that of query j + behind
    for (int64_t j = any.from; j < any.to; j++) {
      int64_t from = s.causal ? std::clamp<int64_t>(j + behind, 0, queries) : 0, to = queries;
      if (s.window > 0) to = std::clamp<int64_t>(j + behind + s.window, from, queries);
      of[j - any.from] = {static_cast<int32_t>(from), static_cast<int32_t>(to)};
    }
  }
};

// Adds `rows` rows of one head to what is fetched.
inline void fetchHead(Fetch& f, const float* at, int64_t row, int64_t rows, int64_t d) {
  const int64_t size = sizeof(float);
  if (rows > 0) {
    f.list[f.count++] = {reinterpret_cast<const char*>(at), row * size, rows, (d * size + 63) / 64};
  }
}

// f(tile) for each tile of keys that some query of the block sees.
template <class F>
void eachTile(const Shape& s, int64_t q0, F f) {
  int64_t to = s.last(std::min(q0 + kQueries, s.t) - 1);
  for (int64_t k0 = s.first(q0) / kKeys * kKeys; k0 < to; k0 += kKeys) f(Tile::at(s, q0, k0));
}

}  // namespace lowrank::tiles

namespace lowrank {

void attentionGrad(const Args& args);

}  // namespace lowrank

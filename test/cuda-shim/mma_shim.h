// Tensor-core instructions on a processor: a warp's lanes exchange their fragments, and each
// computes its own elements of the product.
#pragma once

#include <deque>
#include <unordered_map>
#include <vector>

#include "cuda_shim.h"

namespace lowrank {

inline float shimHalfOf(uint32_t pair, int i) {
  return __uint_as_float(i == 0 ? pair << 16 : pair & 0xffff0000u);
}

inline void mmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  uint32_t as[32][4], bs[32][2], own[2] = {b0, b1};
  const char* all = shim::exchange(0xffffffffu, a, sizeof a);
  for (int l = 0; l < 32; l++) std::memcpy(as[l], all + l * 16, sizeof as[l]);
  all = shim::exchange(0xffffffffu, own, sizeof own);
  for (int l = 0; l < 32; l++) std::memcpy(bs[l], all + l * 16, sizeof bs[l]);
  int lane = shim::laneOf();
  for (int e = 0; e < 4; e++) {
    int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
    float sum = c[e];
    for (int k = 0; k < 16; k++) {
      int t = k % 8 / 2;
      float left = shimHalfOf(as[row % 8 * 4 + t][row / 8 + k / 8 * 2], k % 2);
      float right = shimHalfOf(bs[column * 4 + t][k / 8], k % 2);
      sum += left * right;
    }
    c[e] = sum;
  }
}

inline void shimLoadMatrices(uint32_t (&r)[4], const void* row, bool turned) {
  const uint16_t* rows[32];
  const char* all = shim::exchange(0xffffffffu, &row, sizeof row);
  for (int l = 0; l < 32; l++) std::memcpy(&rows[l], all + l * 16, sizeof rows[l]);
  int g = shim::laneOf() / 4, t = shim::laneOf() % 4 * 2;
  for (int i = 0; i < 4; i++) {
    const uint16_t* const* matrix = rows + i * 8;
    uint32_t lower = turned ? matrix[t][g] : matrix[g][t];
    uint32_t upper = turned ? matrix[t + 1][g] : matrix[g][t + 1];
    r[i] = lower | upper << 16;
  }
  // No lane goes on to write to what another still reads.
  __syncwarp();
}
inline void loadMatrices(uint32_t (&r)[4], const void* row) { shimLoadMatrices(r, row, false); }
inline void loadTurnedMatrices(uint32_t (&r)[4], const void* row) {
  shimLoadMatrices(r, row, true);
}

// Copies are done as late as may be, so that who does not wait for one reads something else.
struct ShimCopy {
  char* to;
  const void* from;
};
struct ShimCopies {
  std::deque<std::vector<ShimCopy>> groups;
  std::vector<ShimCopy> open;
  unsigned x = 0, y = 0;  // the block they belong to
};
inline ShimCopies& shimCopies() {
  static std::unordered_map<int, ShimCopies> all;
  ShimCopies& own = all[shim::here->rank];
  if (own.x != blockIdx.x || own.y != blockIdx.y) {
    own.groups.clear();
    own.open.clear();
    own.x = blockIdx.x;
    own.y = blockIdx.y;
  }
  return own;
}
inline void copyAsync(void* to, const void* from, bool there) {
  shimCopies().open.push_back({static_cast<char*>(to), there ? from : nullptr});
}
inline void endCopies() {
  ShimCopies& c = shimCopies();
  c.groups.push_back(std::move(c.open));
  c.open.clear();
}
template <int N>
void copiesLeft() {
  ShimCopies& c = shimCopies();
  while (c.groups.size() > N) {
    for (const ShimCopy& copy : c.groups.front()) {
      if (copy.from) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
    c.groups.pop_front();
  }
}

}  // namespace lowrank

// Rotary position embedding in Hugging Face's rotate-half layout.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../common/calls/rows.h"
#include "kernels.h"

namespace lowrank {

namespace {

// cos and sin of a position's angles, angles in doubles.
void angles(int32_t position, const float* invFreq, int64_t half, double sign, double factor,
            float* cosine, float* sine) {
  for (int64_t i = 0; i < half; i++) {
    double angle = static_cast<double>(position) * static_cast<double>(invFreq[i]);
    cosine[i] = static_cast<float>(std::cos(angle) * factor);
    sine[i] = static_cast<float>(sign * std::sin(angle) * factor);
  }
}

void rope(const Args& args) {
  RopeCall r = ropeCall(args);
  int64_t tokens = r.tokens, h = r.heads, d = r.d, half = r.half;
  const int32_t* positions = r.positions;
  Floats invFreq = floats(args, 2);
  if (args[0].count == 0) return;

  // One table row for each distinct position where they are dense; else one for each token.
  int32_t low = *std::min_element(positions, positions + tokens);
  int32_t high = *std::max_element(positions, positions + tokens);
  int64_t span = static_cast<int64_t>(high) - low + 1;
  bool dense = span <= tokens;
  int64_t rows = dense ? span : tokens;
  Workspace held(args.context.memory, static_cast<uint64_t>(rows * half) * 2 * sizeof(float));
  float* table = held.as<float>();
  args.context.rows(rows, half * 16, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      int32_t position = dense ? static_cast<int32_t>(low + i) : positions[i];
      float* row = table + i * 2 * half;
      angles(position, invFreq, half, r.sign, r.factor, row, row + half);
    }
  });
  auto rotate = args.context.isa->rotate;
  Lines x(args, args[0], h * d), y(args, args[3], h * d);
  auto turn = [&](const float* in, float* out, const float* cosine) {
    for (int64_t head = 0; head < h; head++, in += d, out += d) {
      rotate(in, in + half, cosine, cosine + half, out, out + half, half);
      if (2 * half < d) {
        std::memcpy(out + 2 * half, in + 2 * half,
                    static_cast<size_t>(d - 2 * half) * sizeof(float));
      }
    }
  };
  args.context.rows(tokens, h * d, [&](int64_t from, int64_t to, int worker) {
    for (int64_t i = from; i < to; i++) {
      const float* cosine =
          table + (dense ? positions[i] - static_cast<int64_t>(low) : i) * 2 * half;
      const float* in = x.read(i, worker);
      y.write(i, worker, [&](float* out) { turn(in, out, cosine); });
    }
  });
}

}  // namespace

void registerRope(Registry& r) { r.push_back({"rope", rope}); }

}  // namespace lowrank

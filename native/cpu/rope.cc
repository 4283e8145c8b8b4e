// Rotary position embedding in Hugging Face's rotate-half layout.
#include <algorithm>
#include <cmath>
#include <cstring>

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
  args.counts(4, 2);
  const View& shape = args[0];
  EXPECT(args, shape.rank == 4, "x [B, T, H, D]", shape.describe());
  int64_t b = shape.dims[0], t = shape.dims[1], h = shape.dims[2], d = shape.dims[3];
  Floats x = floats(args, 0), invFreq = floats(args, 2);
  args.shaped(1, {b, t});
  const int32_t* positions = args.typed(1, DType::i32).as<int32_t>();
  EXPECT(args, args[2].rank == 1 && 2 * args[2].count <= d,
         "inverse frequencies for at most D/2 pairs", args[2].describe());
  args.sameShape(0, 3);
  float* y = args.out(3).as<float>();
  double sign = args.integer(0, 0, 1) ? -1 : 1, factor = args.attrs[1];
  int64_t half = args[2].count, tokens = b * t;
  if (shape.count == 0) return;

  // One table row for each distinct position where they are dense; else one for each token.
  int32_t low = *std::min_element(positions, positions + tokens);
  int32_t high = *std::max_element(positions, positions + tokens);
  int64_t span = static_cast<int64_t>(high) - low + 1;
  bool dense = span <= tokens;
  int64_t rows = dense ? span : tokens;
  Workspace held(args.context.memory, static_cast<uint64_t>(rows * half) * 2 * sizeof(float));
  float* table = held.as<float>();
  args.context.rows(rows, half * 16, [&](int64_t from, int64_t to, int) {
    for (int64_t r = from; r < to; r++) {
      int32_t position = dense ? static_cast<int32_t>(low + r) : positions[r];
      angles(position, invFreq, half, sign, factor, table + r * 2 * half,
             table + r * 2 * half + half);
    }
  });
  auto rotate = args.context.isa->rotate;
  args.context.rows(tokens, h * d, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      const float* cosine =
          table + (dense ? positions[i] - static_cast<int64_t>(low) : i) * 2 * half;
      for (int64_t head = 0; head < h; head++) {
        const float* in = x + (i * h + head) * d;
        float* out = y + (i * h + head) * d;
        rotate(in, in + half, cosine, cosine + half, out, out + half, half);
        if (2 * half < d) {
          std::memcpy(out + 2 * half, in + 2 * half,
                      static_cast<size_t>(d - 2 * half) * sizeof(float));
        }
      }
    }
  });
}

}  // namespace

void registerRope(Registry& r) { r.push_back({"rope", rope}); }

}  // namespace lowrank

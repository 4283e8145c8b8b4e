// Rotary position embedding in Hugging Face's rotate-half layout.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../common/calls/rows.h"
#include "kernels.h"

namespace lowrank {

namespace {

// Angles are sums of a whole number of kStep positions and a rest below it, so that a table of many
// positions takes few sines; a position's bits are the same in any table.
constexpr int32_t kStep = 16;
int32_t restOf(int32_t position) { return position & (kStep - 1); }
int64_t wholeOf(int32_t position) { return static_cast<int64_t>(position) - restOf(position); }

// cos and sin of a position's angles, in doubles.
void angles(int64_t position, const float* invFreq, int64_t half, double* cosine, double* sine) {
  for (int64_t i = 0; i < half; i++) {
    double angle = static_cast<double>(position) * static_cast<double>(invFreq[i]);
    cosine[i] = std::cos(angle);
    sine[i] = std::sin(angle);
  }
}

// The same of the sum of two positions, each with its cosines and then its sines, in floats.
void addAngles(const double* whole, const double* rest, int64_t half, double sign, double factor,
               float* cosine, float* sine) {
  const double *c = whole, *s = whole + half, *d = rest, *t = rest + half;
  sign *= factor;
  for (int64_t i = 0; i < half; i++) {
    cosine[i] = static_cast<float>((c[i] * d[i] - s[i] * t[i]) * factor);
    sine[i] = static_cast<float>((s[i] * d[i] + c[i] * t[i]) * sign);
  }
}

// Rows of cosines and sines of the positions [low, low + span).
void denseTable(Context& context, const float* invFreq, int64_t half, double sign, double factor,
                int32_t low, int64_t span, float* table) {
  int64_t first = wholeOf(low), steps = (low - first + span + kStep - 1) / kStep;
  int64_t rests = std::min<int64_t>(span, kStep), start = restOf(low);
  Workspace held(context.memory,
                 static_cast<uint64_t>((steps + kStep) * 2 * half) * sizeof(double));
  double *wholes = held.as<double>(), *parts = wholes + steps * 2 * half;
  context.rows(steps + rests, half * 32, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      int64_t rest = (start + i - steps) % kStep;
      double* row = i < steps ? wholes + i * 2 * half : parts + rest * 2 * half;
      angles(i < steps ? first + i * kStep : rest, invFreq, half, row, row + half);
    }
  });
  context.rows(span, half * 4, [&](int64_t from, int64_t to, int) {
    for (int64_t i = from; i < to; i++) {
      int64_t at = start + i;
      float* row = table + i * 2 * half;
      addAngles(wholes + at / kStep * 2 * half, parts + at % kStep * 2 * half, half, sign, factor,
                row, row + half);
    }
  });
}

// The same of each position by itself.
void looseTable(Context& context, const float* invFreq, int64_t half, double sign, double factor,
                const int32_t* positions, int64_t count, float* table) {
  Workspace held(context.memory,
                 static_cast<uint64_t>(context.threads * 4 * half) * sizeof(double));
  context.rows(count, half * 64, [&](int64_t from, int64_t to, int worker) {
    double *whole = held.as<double>() + worker * 4 * half, *rest = whole + 2 * half;
    for (int64_t i = from; i < to; i++) {
      float* row = table + i * 2 * half;
      angles(wholeOf(positions[i]), invFreq, half, whole, whole + half);
      angles(restOf(positions[i]), invFreq, half, rest, rest + half);
      addAngles(whole, rest, half, sign, factor, row, row + half);
    }
  });
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
  if (dense) {
    denseTable(args.context, invFreq, half, r.sign, r.factor, low, span, table);
  } else {
    looseTable(args.context, invFreq, half, r.sign, r.factor, positions, tokens, table);
  }
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

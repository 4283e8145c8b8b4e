// Rotary position embedding in Hugging Face's rotate-half layout.
#include "../common/calls/rows.h"
#include "pack.cuh"

namespace lowrank {

namespace {

constexpr int kThreads = 256;
constexpr int kMostTokens = 8;  // of a block

struct Turn {
  float cosine, sine;
};

// Of an angle below 2^31: turned into [-pi/4, pi/4] by quarters in doubles, so that no digit is
// lost; then Taylor's series in f32, whose rest is below 2e-9 there.
__device__ __forceinline__ Turn turnOf(double angle) {
  constexpr double kTwoOverPi = 0.6366197723675814, kHalfPi = 1.5707963267948966,
                   kHalfPiRest = 6.123233995736766e-17;  // pi/2 - kHalfPi
  double quarters = rint(angle * kTwoOverPi);
  float r = static_cast<float>(fma(-quarters, kHalfPiRest, fma(-quarters, kHalfPi, angle)));
  float s = r * r;
  float sine = s * (s * (s * (s * (1.0f / 362880) - 1.0f / 5040) + 1.0f / 120) - 1.0f / 6);
  sine = r + r * sine;
  float cosine = s * (s * (s * (s * (1.0f / 3628800) - 1.0f / 40320) + 1.0f / 720) - 1.0f / 24);
  cosine = 1.0f - s * (0.5f + cosine);
  int quarter = static_cast<int>(static_cast<int64_t>(quarters) & 3);
  if (quarter == 0) return {cosine, sine};
  if (quarter == 1) return {-sine, cosine};
  if (quarter == 2) return {-cosine, -sine};
  return {sine, -cosine};
}

// x [tokens, heads, size]; pairs (i, i + half) are turned.
struct Shape {
  int64_t tokens;
  int heads, size, half, perBlock;
  float sign, factor;
};

// A block has `perBlock` tokens: their angles once, in shared memory, then all of their heads.
// Packed: four pairs at once.
template <bool Packed>
__global__ void __launch_bounds__(kThreads, 4)
    ropeKernel(AnyFloats x, const int* positions, AnyFloats invFreq, AnyOut y, Shape s) {
  DYNAMIC_SHARED(float, cosines);
  float* sines = cosines + s.perBlock * s.half;
  int64_t first = static_cast<int64_t>(blockIdx.x) * s.perBlock;
  int tokens = static_cast<int>(s.tokens - first < s.perBlock ? s.tokens - first : s.perBlock);
  for (int j = static_cast<int>(threadIdx.x); j < tokens * s.half; j += kThreads) {
    int token = j / s.half, i = j - token * s.half;
    Turn t =
        turnOf(static_cast<double>(positions[first + token]) * static_cast<double>(invFreq[i]));
    cosines[j] = t.cosine * s.factor;
    sines[j] = t.sine * s.factor * s.sign;
  }
  __syncthreads();
  constexpr int kEach = Packed ? 4 : 1;
  int lines = s.half / kEach, pairs = tokens * s.heads * lines;
  for (int j = static_cast<int>(threadIdx.x); j < pairs; j += kThreads) {
    int head = j / lines, i = (j - head * lines) * kEach, angle = head / s.heads * s.half + i;
    int64_t at = (first * s.heads + head) * s.size + i;
    if constexpr (Packed) {
      float a[4], b[4], c[4], n[4], u[4], v[4];
      x.four(at, a);
      x.four(at + s.half, b);
      loadPack(cosines + angle, c);
      loadPack(sines + angle, n);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        u[k] = a[k] * c[k] - b[k] * n[k];
        v[k] = b[k] * c[k] + a[k] * n[k];
      }
      y.four(at, u);
      y.four(at + s.half, v);
    } else {
      float a = x[at], b = x[at + s.half], c = cosines[angle], n = sines[angle];
      y.set(at, a * c - b * n);
      y.set(at + s.half, b * c + a * n);
    }
  }
  int rest = s.size - 2 * s.half;
  for (int j = static_cast<int>(threadIdx.x); j < tokens * s.heads * rest; j += kThreads) {
    int head = j / rest;
    int64_t at = (first * s.heads + head) * s.size + 2 * s.half + (j - head * rest);
    y.set(at, x[at]);
  }
}

// Launcher.

void rope(const CudaArgs& args) {
  RopeCall r = ropeCall(args);
  AnyFloats x = anyFloats(args, 0), invFreq = anyFloats(args, 2);
  int64_t half = r.half;
  EXPECT(args, r.heads * r.d < INT32_MAX / kMostTokens && half <= 3072,
         "heads of at most 6144 channels", args[0].describe());
  if (args[0].count == 0) return;
  AnyOut y(args[3]);
  bool packed = x.packs() && y.packs() && half % 4 == 0 && r.d % 4 == 0;
  Shape s = {
      r.tokens, static_cast<int>(r.heads),  static_cast<int>(r.d),       static_cast<int>(half),
      1,        static_cast<float>(r.sign), static_cast<float>(r.factor)};
  // So many tokens that every thread has something to do.
  int64_t pairs = r.heads * half / (packed ? 4 : 1);
  while (s.perBlock < kMostTokens && s.perBlock * pairs < kThreads &&
         s.perBlock * 2 * half * 8 <= 48 * 1024) {
    s.perBlock *= 2;
  }
  launch(args, packed ? ropeKernel<true> : ropeKernel<false>, dim3(blocksFor(s.tokens, s.perBlock)),
         dim3(kThreads), static_cast<size_t>(s.perBlock * half) * 2 * sizeof(float), x, r.positions,
         invFreq, y, s);
}

}  // namespace

void registerRope(CudaRegistry& r) { r.push_back({"rope", rope}); }

}  // namespace lowrank

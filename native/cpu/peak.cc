#include "peak.h"

#include <atomic>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lowrank {

namespace {

constexpr int64_t kRounds = 4'000'000;
// Independent sums, enough to cover the latency of two units; of four on ARM, where more fit.
#if defined(__aarch64__)
constexpr int kSums = 24;
#else
constexpr int kSums = 12;
#endif

using Loop = float (*)(int64_t rounds);

#if defined(__x86_64__)
__attribute__((target("avx512f"))) float loop512(int64_t rounds) {
  __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f), sum[kSums];
  for (int i = 0; i < kSums; i++) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; i++) sum[i] = _mm512_fmadd_ps(sum[i], x, y);
  }
  for (int i = 1; i < kSums; i++) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return _mm512_cvtss_f32(sum[0]);
}

__attribute__((target("avx2,fma"))) float loop256(int64_t rounds) {
  __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f), sum[kSums];
  for (int i = 0; i < kSums; i++) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; i++) sum[i] = _mm256_fmadd_ps(sum[i], x, y);
  }
  for (int i = 1; i < kSums; i++) sum[0] = _mm256_add_ps(sum[0], sum[i]);
  return _mm256_cvtss_f32(sum[0]);
}
#elif defined(__aarch64__)
float loopNeon(int64_t rounds) {
  float32x4_t x = vdupq_n_f32(0.999f), y = vdupq_n_f32(0.001f), sum[kSums];
  for (int i = 0; i < kSums; i++) sum[i] = vdupq_n_f32(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; i++) sum[i] = vfmaq_f32(sum[i], x, y);
  }
  for (int i = 1; i < kSums; i++) sum[0] = vaddq_f32(sum[0], sum[i]);
  return vgetq_lane_f32(sum[0], 0);
}
#endif

#if !defined(__aarch64__)
float loopGeneric(int64_t rounds) {
  float sum[kSums] = {};
  for (int64_t r = 0; r < rounds; r++) {
    for (float& s : sum) s = s * 0.999f + 0.001f;
  }
  for (int i = 1; i < kSums; i++) sum[0] += sum[i];
  return sum[0];
}
#endif

}  // namespace

double fmaPeak(Context& context) {
#if defined(__aarch64__)
  Loop loop = loopNeon;
  int width = 4;
#else
  Loop loop = loopGeneric;
  int width = 1;
#endif
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) {
    loop = loop512;
    width = 16;
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    loop = loop256;
    width = 8;
  }
#endif
  std::atomic<float> sink{0};  // keeps the loops from being dropped
  auto start = std::chrono::steady_clock::now();
  context.chunks(static_cast<size_t>(context.threads),
                 [&](int64_t, int) { sink.store(loop(kRounds)); });
  std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return 2.0 * width * kSums * static_cast<double>(kRounds) * context.threads / seconds.count() /
         1e9;
}

}  // namespace lowrank

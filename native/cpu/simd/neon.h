// NEON's share of vec.h's vectors, for every instruction set that builds on it: 16-byte vectors, 32
// registers, 6x16 register blocks (24 sums, 4 of b, 2 of a). Included inside namespace lowrank,
// after isa.h and arm_neon.h.
#define VEC_PARTIAL
#define VEC_SQRT
#define VEC_FUSED
#define VEC_HALF
#define VEC_BRAIN
#define VEC_TRANSPOSE
#define VEC_WIDE
#define VEC_LANES
#define VEC_MANY

namespace {
constexpr int kWidth = 4;
constexpr int kRows = 6;
constexpr int kVecs = 4;

typedef float floats4 __attribute__((vector_size(16)));
inline floats4 loadPart(const float* p, int64_t n) {
  if (n > 3) return (floats4)vld1q_f32(p);
  const float32x2_t none = vdup_n_f32(0.0f);
  if (n >= 2)
    return (floats4)vcombine_f32(vld1_f32(p), n > 2 ? vld1_lane_f32(p + 2, none, 0) : none);
  return (floats4)vcombine_f32(n > 0 ? vld1_lane_f32(p, none, 0) : none, none);
}
inline void storePart(float* p, floats4 v, int64_t n) {
  if (n > 3) return vst1q_f32(p, (float32x4_t)v);
  if (n >= 2) vst1_f32(p, vget_low_f32((float32x4_t)v));
  if (n == 1) vst1q_lane_f32(p, (float32x4_t)v, 0);
  if (n > 2) vst1q_lane_f32(p + 2, (float32x4_t)v, 2);
}
inline floats4 fused(floats4 a, floats4 b, floats4 c) {
  return (floats4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
// a * b[Lane] + c, the lane picked by the instruction itself.
template <int Lane>
inline floats4 fusedLane(floats4 a, floats4 b, floats4 c) {
  return (floats4)vfmaq_laneq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b, Lane);
}
inline floats4 root(floats4 x) { return (floats4)vsqrtq_f32((float32x4_t)x); }

typedef uint16_t halves4 __attribute__((vector_size(8)));
inline floats4 widenHalf(halves4 h) { return (floats4)vcvt_f32_f16((float16x4_t)h); }
inline halves4 narrowHalf(floats4 x) { return (halves4)vcvt_f16_f32((float32x4_t)x); }

// bf16 is the upper half of an f32.
inline floats4 widenBrain(halves4 h) { return (floats4)vshll_n_u16((uint16x4_t)h, 16); }
inline void widenBrains(const uint16_t* p, floats4* a, floats4* b) {
  uint16x8_t both = vld1q_u16(p);
  *a = (floats4)vshll_n_u16(vget_low_u16(both), 16);
  *b = (floats4)vshll_high_n_u16(both, 16);
}
typedef uint16_t vhh __attribute__((vector_size(16)));
typedef uint32_t words4 __attribute__((vector_size(16)));
inline vhh joined(halves4 a, halves4 b) { return (vhh)vcombine_u16((uint16x4_t)a, (uint16x4_t)b); }
// The upper halves of the lanes of a, then those of b.
inline vhh upperHalves(words4 a, words4 b) { return (vhh)vuzp2q_u16((uint16x8_t)a, (uint16x8_t)b); }
// Low and high words of the products of the lanes with m.
inline words4 multiplyWide(words4 a, uint32_t m, words4* low) {
  uint32x4_t first = (uint32x4_t)vmull_n_u32(vget_low_u32((uint32x4_t)a), m);
  uint32x4_t last = (uint32x4_t)vmull_high_n_u32((uint32x4_t)a, m);
  *low = (words4)vuzp1q_u32(first, last);
  return (words4)vuzp2q_u32(first, last);
}
typedef int32_t signed4 __attribute__((vector_size(16)));
inline bool anyAbove(signed4 x, int32_t limit) { return vmaxvq_s32((int32x4_t)x) > limit; }

// Row i of v becomes its column i: by single lanes of pairs of rows, then by pairs of lanes.
inline void transpose(floats4* v) {
  float64x2_t t[4];
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2) {
    float32x4_t a = (float32x4_t)v[i], b = (float32x4_t)v[i + 1];
    t[i] = (float64x2_t)vtrn1q_f32(a, b);
    t[i + 1] = (float64x2_t)vtrn2q_f32(a, b);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    v[i] = (floats4)vzip1q_f64(t[i], t[2 + i]);
    v[2 + i] = (floats4)vzip2q_f64(t[i], t[2 + i]);
  }
}

// acc[i][j] += a[i] b[j]: four of a at a time in one register, met lane by lane.
template <int MR, int NV, int I = 0>
inline __attribute__((always_inline)) void outer(const float* a, const floats4 (&b)[NV],
                                                 floats4 (&acc)[MR][NV], floats4 some = floats4{}) {
  if constexpr (I % 4 == 0) some = MR - I < 4 ? loadPart(a + I, MR - I) : (floats4)vld1q_f32(a + I);
#pragma GCC unroll 4
  for (int j = 0; j < NV; j++) acc[I][j] = fusedLane<I % 4>(b[j], some, acc[I][j]);
  if constexpr (I + 1 < MR) outer<MR, NV, I + 1>(a, b, acc, some);
}
}  // namespace

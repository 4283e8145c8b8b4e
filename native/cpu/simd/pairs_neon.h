// Steps of two bf16 elements of K, as BFDOT multiplies them; f32 is rounded to nearest even and
// subnormals count as zero, as everywhere in that instruction. Included by gemm.h.

constexpr int kPair = 2;

// Elements [0, 4) into the low halves, [4, 8) after them: pairs in the order of K.
VEC_INLINE vf twoOf(vf low, vf high) {
  bfloat16x8_t half = vcvtq_low_bf16_f32((float32x4_t)low);
  return (vf)vcvtq_high_bf16_f32(half, (float32x4_t)high);
}

template <class T>
VEC_INLINE vf alongK(const T* p) {
  return twoOf(loadAs(p), loadAs(p + kWidth));
}
VEC_INLINE vf alongK(const Brain* p) { return (vf)vld1q_u16(&p->bits); }

template <class T>
VEC_INLINE vf alongKPart(const T* p, int64_t n) {
  if (n < kWidth) return twoOf(partAs(p, n), splat(0.0f));
  return twoOf(loadAs(p), n > kWidth ? partAs(p + kWidth, n - kWidth) : splat(0.0f));
}
VEC_INLINE vf alongKPart(const Brain* p, int64_t n) {
  vhh v = {};
  for (int64_t i = 0; i < n; i++) v[i] = p[i].bits;
  return (vf)v;
}

// Four elements as bf16 bits.
template <class T>
VEC_INLINE uint16x4_t brainBits(const T* p) {
  return (uint16x4_t)vcvt_bf16_f32((float32x4_t)loadAs(p));
}
VEC_INLINE uint16x4_t brainBits(const Brain* p) { return vld1_u16(&p->bits); }
template <class T>
VEC_INLINE uint16x4_t brainBitsPart(const T* p, int64_t n) {
  return (uint16x4_t)vcvt_bf16_f32((float32x4_t)partAs(p, n));
}
VEC_INLINE uint16x4_t brainBitsPart(const Brain* p, int64_t n) {
  vh v = {};
  for (int64_t i = 0; i < n; i++) v[i] = p[i].bits;
  return (uint16x4_t)v;
}

VEC_INLINE vf pairsOf(uint16x4_t low, uint16x4_t high) {
  return (vf)vzip1q_u16(vcombine_u16(low, low), vcombine_u16(high, high));
}
template <class T>
VEC_INLINE vf acrossK(const T* p, int64_t depth, bool single) {
  return pairsOf(brainBits(p), single ? vdup_n_u16(0) : brainBits(p + depth));
}
template <class T>
VEC_INLINE vf acrossKPart(const T* p, int64_t n, int64_t depth, bool single) {
  return pairsOf(brainBitsPart(p, n), single ? vdup_n_u16(0) : brainBitsPart(p + depth, n));
}

// The pair in every lane, moved as bits.
VEC_INLINE vf splatStep(const float* p) { return (vf)vld1q_dup_f32(p); }
VEC_INLINE vf multiplyAdd(vf a, vf b, vf sum) {
  return (vf)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
// One step of K for MR rows, which lie side by side: four of them in one register.
template <int MR, int NV, int I = 0>
VEC_INLINE void multiplyStep(const float* a, const vf (&b)[NV], vf (&acc)[MR][NV], vf some = vf{}) {
  if constexpr (I % 4 == 0) some = MR - I < 4 ? loadPart(a + I, MR - I) : load(a + I);
#pragma GCC unroll 4
  for (int j = 0; j < NV; j++) {
    acc[I][j] = (vf)vbfdotq_laneq_f32((float32x4_t)acc[I][j], (bfloat16x8_t)b[j],
                                      (bfloat16x8_t)some, I % 4);
  }
  if constexpr (I + 1 < MR) multiplyStep<MR, NV, I + 1>(a, b, acc, some);
}

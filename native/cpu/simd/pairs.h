// Steps of two bf16 elements of K, as AVX512-BF16 multiplies them; f32 is rounded to nearest even
// and subnormals count as zero, as everywhere in that instruction set. Included by gemm.h.

constexpr int kPair = 2;

VEC_INLINE vf fromBits(__m512i v) { return (vf)v; }

// Elements [0, 16) into the low halves, [16, 32) after them: pairs in the order of K.
VEC_INLINE vf twoOf(vf low, vf high) { return fromBits((__m512i)_mm512_cvtne2ps_pbh(high, low)); }

template <class T>
VEC_INLINE vf alongK(const T* p) {
  return twoOf(loadAs(p), loadAs(p + kWidth));
}
VEC_INLINE vf alongK(const Brain* p) { return fromBits(_mm512_loadu_si512(p)); }

template <class T>
VEC_INLINE vf alongKPart(const T* p, int64_t n) {
  if (n < kWidth) return twoOf(partAs(p, n), splat(0.0f));
  return twoOf(loadAs(p), n > kWidth ? partAs(p + kWidth, n - kWidth) : splat(0.0f));
}
VEC_INLINE vf alongKPart(const Brain* p, int64_t n) {
  return fromBits(_mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1), p));
}

// 16 elements as bf16 bits in 32-bit lanes.
template <class T>
VEC_INLINE __m512i brainBits(const T* p) {
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(loadAs(p)));
}
VEC_INLINE __m512i brainBits(const Brain* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
}
template <class T>
VEC_INLINE __m512i brainBitsPart(const T* p, int64_t n) {
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(partAs(p, n)));
}
VEC_INLINE __m512i brainBitsPart(const Brain* p, int64_t n) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
}

template <class T>
VEC_INLINE vf acrossK(const T* p, int64_t depth, bool single) {
  __m512i low = brainBits(p);
  if (single) return fromBits(low);
  return fromBits(_mm512_or_si512(low, _mm512_slli_epi32(brainBits(p + depth), 16)));
}
template <class T>
VEC_INLINE vf acrossKPart(const T* p, int64_t n, int64_t depth, bool single) {
  __m512i low = brainBitsPart(p, n);
  if (single) return fromBits(low);
  return fromBits(_mm512_or_si512(low, _mm512_slli_epi32(brainBitsPart(p + depth, n), 16)));
}

// The pair in every lane, moved as bits.
VEC_INLINE vf splatStep(const float* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return fromBits(_mm512_set1_epi32(bits));
}
VEC_INLINE vf multiplyAdd(vf a, vf b, vf sum) {
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
// One step of K for MR rows, which lie side by side.
template <int MR, int NV>
VEC_INLINE void multiplyStep(const float* a, const vf (&b)[NV], vf (&acc)[MR][NV]) {
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
    vf av = splatStep(a + i);
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = multiplyAdd(av, b[j], acc[i][j]);
  }
}

// AVX-512's share of vec.h's vectors, for every instruction set that builds on it: 64-byte vectors,
// 14x32 register blocks. Included inside namespace lowrank, after isa.h and the target's pragma.
#define SHUFFLE2(a, b, index) __builtin_shuffle(a, b, index)
#define VEC_PARTIAL
#define VEC_SQRT
#define VEC_FUSED
#define VEC_HALF

namespace {
constexpr int kWidth = 16;
constexpr int kRows = 14;
constexpr int kVecs = 2;

inline __mmask16 firstLanes(int64_t n) { return (__mmask16)((1u << n) - 1); }
inline __m512 loadPart(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(firstLanes(n), p);
}
inline void storePart(float* p, __m512 v, int64_t n) { _mm512_mask_storeu_ps(p, firstLanes(n), v); }
inline __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512 root(__m512 x) { return _mm512_sqrt_ps(x); }

typedef uint16_t halves16 __attribute__((vector_size(32)));
inline __m512 widenHalf(halves16 h) { return _mm512_cvtph_ps((__m256i)h); }
}  // namespace

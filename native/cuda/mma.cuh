// The tensor cores' product of bf16 fragments, and what feeds it: loads of fragments from shared
// memory and copies into it that run meanwhile. The shim has each on a processor.
#pragma once

#include "device.h"

#ifndef __CUDACC__
#include <mma_shim.h>
#endif

namespace lowrank {

#ifdef __CUDACC__

__device__ __forceinline__ unsigned sharedAddress(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// c [16,8] += a [16,16] b [16,8] over a warp; lane l = 4g + t holds, in pairs of neighbours along
// k: a: (g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8); b: (2t, g), (2t+8, g); c: (g, 2t), (g+8, 2t).
__device__ __forceinline__ void mmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices [8,8] of 16 bits: lane l names row l mod 8 of matrix l / 8, and gets of each matrix
// elements (l / 4, 2 (l mod 4)) and the next.
__device__ __forceinline__ void loadMatrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sharedAddress(row))
               : "memory");
}
// The same of the transposed matrices.
__device__ __forceinline__ void loadTurnedMatrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sharedAddress(row))
               : "memory");
}

// 16 bytes into shared memory, or zeros, done by the time copiesLeft says so.
__device__ __forceinline__ void copyAsync(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(sharedAddress(to)),
               "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
// Ends a group of copies.
__device__ __forceinline__ void endCopies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits until at most N groups of this thread are under way.
template <int N>
__device__ __forceinline__ void copiesLeft() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// Two floats rounded to bf16, the first in the lower half.
__device__ __forceinline__ uint32_t packBf16(float lower, float upper) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(upper), "f"(lower));
  return r;
}

__device__ __forceinline__ float fastExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

#else

inline uint32_t packBf16(float lower, float upper) {
  return narrow<Bf16>(lower).bits | static_cast<uint32_t>(narrow<Bf16>(upper).bits) << 16;
}
inline float fastExp2(float x) { return std::exp2(x); }

#endif

}  // namespace lowrank

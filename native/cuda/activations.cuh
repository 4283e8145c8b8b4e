// Activations of one element, and what a product does with an element whose sum is complete.
#pragma once

#include "pack.cuh"
#include "product.h"

namespace lowrank {

constexpr float kRootTwoOverPi = 0.7978845608028654f;
constexpr float kGeluCubic = 0.044715f;  // Hendrycks and Gimpel, Gaussian Error Linear Units

__device__ __forceinline__ float sigmoidOf(float x) { return 1.0f / (1.0f + expf(-x)); }
// 0.5 (1 + tanh u) = sigmoid(2 u)
__device__ __forceinline__ float geluSigmoid(float x) {
  return sigmoidOf(2.0f * kRootTwoOverPi * (x + kGeluCubic * x * x * x));
}
__device__ __forceinline__ float reluOf(float x) { return x <= 0.0f ? 0.0f : x; }
__device__ __forceinline__ float siluOf(float x) { return x * sigmoidOf(x); }
__device__ __forceinline__ float geluErfOf(float x) { return x * normcdff(x); }
__device__ __forceinline__ float geluTanhOf(float x) { return x * geluSigmoid(x); }
__device__ __forceinline__ float swigluOf(float gate, float up) {
  return gate * sigmoidOf(gate) * up;
}

// The activation is the launch's.
__device__ __forceinline__ float activationOf(Activation f, float x) {
  switch (f) {
    case kReluOf:
      return reluOf(x);
    case kSiluOf:
      return siluOf(x);
    case kGeluOf:
      return geluErfOf(x);
    default:
      return geluTanhOf(x);
  }
}

// What `after` makes of element i of a y of this type, which is `value`.
__device__ __forceinline__ void makeOf(const Product& p, int64_t i, float value) {
  const After& after = p.after;
  float made = after.gate ? swigluOf(AnyFloats{after.gate, p.yType}[i], value)
                          : activationOf(after.activation, value);
  AnyOut(after.to, p.yType).set(i, made);
}

// Element i of y is `value`.
__device__ __forceinline__ void settle(const Product& p, int64_t i, float value) {
  if (!p.after.only) AnyOut(p.y, p.yType).set(i, value);
  if (!p.after.to) return;
  makeOf(p, i, p.yType == DType::bf16 ? widen(narrow<Bf16>(value)) : value);
}

// Once a block has written its tile of y, [m0, m0 + rows) by [n0, n0 + cols): reads it back, from
// the nearest caches.
template <int kThreads>
__device__ __forceinline__ void finishTile(const Product& p, int64_t batch, int64_t m0, int rows,
                                           int64_t n0, int cols) {
  if (!p.after.to) return;
  __syncthreads();
  AnyOut y(p.y, p.yType);
  for (int e = static_cast<int>(threadIdx.x); e < rows * cols; e += kThreads) {
    int64_t row = m0 + e / cols, column = n0 + e % cols;
    if (row >= p.m || column >= p.n) continue;
    int64_t i = (batch * p.m + row) * p.n + column;
    makeOf(p, i, y[i]);
  }
}

}  // namespace lowrank

// A matrix product as the launchers hand it to a way of computing it.
#pragma once

#include "../common/calls/matmul.h"
#include "context.h"

namespace lowrank {

// A matrix in memory: element (i, j) lies at i·row + j·col, and one of the two is 1.
struct Factor {
  const void* data;
  DType dtype;
  int64_t row, col;
  int64_t count;  // elements in memory, of all batches
};

// Batches of y in order of its leading axes, and how far each axis moves in a factor, in elements.
struct Batches {
  int axes;
  int64_t count;
  int64_t dims[kMaxRank], a[kMaxRank], b[kMaxRank];
};

// What is made of y's elements once their sums are complete: to = silu(gate)·y where there is a
// gate, else f(y), of y's type and from y as it is stored. None where `to` is null.
struct After {
  void* to;
  const void* gate;
  Activation activation;
  bool only;  // `to` is y, which is not kept
};

// y [m,n] = alpha · a [m,k] b [k,n] (+ bias [n]) (+ y), for each batch.
struct Product {
  int64_t m, n, k;
  Factor a, b;
  void* y;
  DType yType;  // f32 or bf16
  const void* bias;
  DType biasType;
  float alpha;
  bool accumulate;
  Batches batches;
  After after;  // of y, for a single batch
};

// Chooses the way: factors of one type by cuBLASLt or the tensor cores, what is left by tiles.
void runProduct(const CudaArgs& args, const Product& p);

// Products of bf16 factors on the tensor cores, where rows lie as copies of 16 bytes need it. Says
// whether it did.
bool mmaProduct(const CudaArgs& args, const Product& p);

// Any product, on the processor's f32 units: the fallback, and the oracle of the others.
void tiledProduct(const CudaArgs& args, const Product& p);

}  // namespace lowrank

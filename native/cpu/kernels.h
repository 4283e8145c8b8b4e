// The kernel families of the CPU backend and what they share.
#pragma once

#include "../common/registry.h"
#include "isa.h"

namespace lowrank {

// An input as f32: the tensor itself, or its exact widening in scratch memory.
class Floats {
 public:
  explicit Floats(const float* data) : data_(data) {}
  explicit Floats(Workspace&& held) : held_(std::move(held)), data_(held_.as<float>()) {}
  operator const float*() const { return data_; }

 private:
  Workspace held_;
  const float* data_;
};

// Tensor i of f32, f16 or bf16.
Floats floats(const Args& args, size_t i);

// One factor of a product; steps in elements, the type a DType code.
struct Factor {
  const void* data;
  int type;
  int64_t row, col;
};

// C [m,n] = A B over all of K, to be changed as needed.
inline GemmTask gemmTask(int64_t m, int64_t n, int64_t k, const Factor& a, const Factor& b,
                         float* c, int64_t cRow) {
  GemmTask t = {};
  t.m = m;
  t.n = n;
  t.k = t.k1 = k;
  t.a = a.data;
  t.aType = a.type;
  t.aRow = a.row;
  t.aCol = a.col;
  t.b = b.data;
  t.bType = b.type;
  t.bRow = b.row;
  t.bCol = b.col;
  t.c = c;
  t.cRow = cRow;
  t.cCol = 1;
  t.alpha = 1.0f;
  return t;
}

void registerElementwise(Registry& registry);
void registerReduce(Registry& registry);
void registerMatmul(Registry& registry);
void registerSoftmax(Registry& registry);
void registerLoss(Registry& registry);
void registerNorm(Registry& registry);
void registerRope(Registry& registry);
void registerEmbedding(Registry& registry);
void registerAttention(Registry& registry);
void registerDropout(Registry& registry);
void registerLayout(Registry& registry);
void registerGather(Registry& registry);
void registerCast(Registry& registry);
void registerOptim(Registry& registry);
void registerLora(Registry& registry);
void registerLoraRows(Registry& registry);

// Every kernel of this backend.
const Registry& cpuKernels();

}  // namespace lowrank

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

// Copies a block of `dims` between strided tensors; strides in elements, a source stride may be 0.
void copyStrided(Context& context, char* to, const int64_t* toStrides, const char* from,
                 const int64_t* fromStrides, const int64_t* dims, int rank, size_t elementSize);

// Row-major strides of a shape.
void rowMajor(const View& v, int64_t* strides);

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

// Every kernel of this backend.
const Registry& cpuKernels();

}  // namespace lowrank

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

// An output of activations as f32: the tensor itself, or scratch memory that settle() rounds to it.
class Activations {
 public:
  // `read`: what stands in the tensor is read, too.
  Activations(const Args& args, const View& view, bool read = false);
  operator float*() const { return data_; }
  void settle();

 private:
  const Args& args_;
  const View& view_;
  Workspace held_;
  float* data_;
};

// Rows of a tensor as f32, one of each worker's at a time where they are stored in another type.
class Lines {
 public:
  // Of `width` elements each.
  Lines(const Args& args, const View& view, int64_t width);
  const float* read(int64_t row, int worker) const {
    float* to = at(row, worker);
    if (!wide_) widen_(view_.as<uint16_t>() + row * width_, to, width_);
    return to;
  }
  // f(where the row is to be written).
  template <class F>
  void write(int64_t row, int worker, F&& f) const {
    float* to = at(row, worker);
    f(to);
    if (!wide_) narrow_(to, view_.as<uint16_t>() + row * width_, width_);
  }

 private:
  float* at(int64_t row, int worker) const {
    return wide_ ? view_.as<float>() + row * width_ : held_.as<float>() + worker * width_;
  }

  const View& view_;
  int64_t width_;
  bool wide_;
  void (*widen_)(const uint16_t*, float*, int64_t);
  void (*narrow_)(const float*, uint16_t*, int64_t);
  Workspace held_;
};

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

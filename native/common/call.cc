#include "call.h"

#include <cmath>

namespace lowrank {

namespace {

std::string plural(size_t n, const char* what) {
  return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
}

}  // namespace

void Call::counts(size_t wantTensors, size_t wantAttrs) const {
  EXPECT((*this), count == wantTensors, plural(wantTensors, "tensor"), std::to_string(count));
  EXPECT((*this), attrCount == wantAttrs, plural(wantAttrs, "attribute"),
         std::to_string(attrCount));
}

void Call::atLeast(size_t wantTensors, size_t wantAttrs) const {
  EXPECT((*this), count >= wantTensors, "at least " + plural(wantTensors, "tensor"),
         std::to_string(count));
  EXPECT((*this), attrCount >= wantAttrs, "at least " + plural(wantAttrs, "attribute"),
         std::to_string(attrCount));
}

const View& Call::writable(size_t i) const {
  EXPECT((*this), !tensors[i].readOnly, "an output in memory that may be written",
         "tensor " + std::to_string(i) + " in a mapped file");
  return tensors[i];
}

const View& Call::typed(size_t i, DType dtype) const {
  EXPECT((*this), tensors[i].dtype == dtype,
         std::string("tensor ") + std::to_string(i) + " of " + dtypeName(dtype),
         tensors[i].describe());
  return tensors[i];
}

const View& Call::out(size_t i, DType dtype) const {
  typed(i, dtype);
  return writable(i);
}

const View& Call::activations(size_t i) const {
  DType dtype = tensors[i].dtype;
  EXPECT((*this), dtype == DType::f32 || dtype == DType::bf16,
         "tensor " + std::to_string(i) + " of f32 or bf16", tensors[i].describe());
  return writable(i);
}

const View& Call::floating(size_t i) const {
  EXPECT((*this), isFloat(tensors[i].dtype), "tensor " + std::to_string(i) + " of f32, f16 or bf16",
         tensors[i].describe());
  return tensors[i];
}

void Call::alike(size_t inputs, size_t outputs) const {
  for (size_t i = 0; i < inputs; i++) floating(i);
  for (size_t i = 1; i < inputs + outputs; i++) sameShape(0, i);
  for (size_t i = inputs; i < inputs + outputs; i++) activations(i);
}

void Call::sameDType(size_t i, size_t j) const {
  EXPECT((*this), tensors[i].dtype == tensors[j].dtype,
         std::string("one dtype, ") + dtypeName(tensors[i].dtype), tensors[j].describe());
}

void Call::sameShape(size_t i, size_t j) const {
  EXPECT((*this), tensors[i].sameShape(tensors[j]),
         "tensor " + std::to_string(j) + " shaped as " + tensors[i].describe(),
         tensors[j].describe());
}

void Call::shaped(size_t i, std::initializer_list<int64_t> dims) const {
  View want = tensors[i];
  want.rank = 0;
  for (int64_t d : dims) want.dims[want.rank++] = d;
  EXPECT((*this), want.sameShape(tensors[i]),
         "tensor " + std::to_string(i) + " as " + want.describe(), tensors[i].describe());
}

int64_t Call::integer(size_t i, int64_t lo, int64_t hi) const {
  double v = attrs[i];
  EXPECT((*this),
         v == std::floor(v) && v >= static_cast<double>(lo) && v <= static_cast<double>(hi),
         "attribute " + std::to_string(i) + " to be an integer from " + std::to_string(lo) +
             " to " + std::to_string(hi),
         std::to_string(v));
  return static_cast<int64_t>(v);
}

}  // namespace lowrank

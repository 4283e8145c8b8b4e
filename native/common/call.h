// What a kernel of any backend is called with, and the cheap checks it makes.
#pragma once

#include <initializer_list>
#include <string>

#include "error.h"
#include "view.h"

namespace lowrank {

// Throws unless `ok`; the texts are made only then.
#define EXPECT(args, ok, expected, received)            \
  do {                                                  \
    if (!(ok)) fail((args).kernel, expected, received); \
  } while (false)

struct Call {
  const char* kernel;
  const View* tensors;
  size_t count;
  const double* attrs;
  size_t attrCount;

  // Exactly these numbers of tensors and attributes.
  void counts(size_t wantTensors, size_t wantAttrs) const;
  void atLeast(size_t wantTensors, size_t wantAttrs) const;
  const View& operator[](size_t i) const { return tensors[i]; }
  // A tensor of the given dtype that may be written.
  const View& out(size_t i, DType dtype = DType::f32) const;
  // An output of activations: of f32 or bf16.
  const View& activations(size_t i) const;
  const View& writable(size_t i) const;
  const View& typed(size_t i, DType dtype) const;
  // A tensor of f32, f16 or bf16.
  const View& floating(size_t i) const;
  void sameShape(size_t i, size_t j) const;
  // These many floating inputs, then outputs of f32 or bf16, all of one shape.
  void alike(size_t inputs, size_t outputs) const;
  void sameDType(size_t i, size_t j) const;
  void shaped(size_t i, std::initializer_list<int64_t> dims) const;
  // The attribute as an integer in [lo, hi].
  int64_t integer(size_t i, int64_t lo, int64_t hi) const;
  // An axis in [0, rank).
  int axis(size_t i, int rank) const { return static_cast<int>(integer(i, 0, rank - 1)); }
};

}  // namespace lowrank

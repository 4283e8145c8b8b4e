// A tensor as a kernel sees it: a pointer, a dtype and a contiguous row-major shape.
#pragma once

#include <cstdint>
#include <string>

#include "dtype.h"

namespace lowrank {

constexpr int kMaxRank = 8;

struct View {
  char* data = nullptr;
  uint64_t handle = 0;  // of the buffer
  DType dtype = DType::f32;
  int rank = 0;
  bool readOnly = false;
  int64_t dims[kMaxRank] = {};
  int64_t count = 1;

  int64_t dim(int i) const { return dims[i < 0 ? rank + i : i]; }
  // Size of the last axis; a scalar counts as one row of one.
  int64_t last() const { return rank == 0 ? 1 : dims[rank - 1]; }
  // Product of all axes but the last.
  int64_t rows() const { return product(0, rank - 1); }
  int64_t product(int from, int to) const {
    int64_t n = 1;
    for (int i = from; i < to; i++) n *= dims[i];
    return n;
  }
  size_t bytes() const { return static_cast<size_t>(count) * dtypeSize(dtype); }
  bool sameShape(const View& o) const {
    if (rank != o.rank) return false;
    for (int i = 0; i < rank; i++) {
      if (dims[i] != o.dims[i]) return false;
    }
    return true;
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
  std::string describe() const {
    std::string s = std::string(dtypeName(dtype)) + " [";
    for (int i = 0; i < rank; i++) s += (i ? ", " : "") + std::to_string(dims[i]);
    return s + "]";
  }
};

}  // namespace lowrank

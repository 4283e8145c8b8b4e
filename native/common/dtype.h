// Element types and their codes, shared with TypeScript.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowrank {

enum class DType : int {
  f32 = 0,
  f16 = 1,
  bf16 = 2,
  f64 = 3,
  i32 = 4,
  i64 = 5,
  u8 = 6,
  boolean = 7
};

constexpr int kDTypes = 8;

constexpr size_t dtypeSize(DType t) {
  constexpr size_t sizes[kDTypes] = {4, 2, 2, 8, 4, 8, 1, 1};
  return sizes[static_cast<int>(t)];
}

constexpr const char* dtypeName(DType t) {
  constexpr const char* names[kDTypes] = {"f32", "f16", "bf16", "f64", "i32", "i64", "u8", "bool"};
  return names[static_cast<int>(t)];
}

// The floating types that kernels widen exactly to f32.
constexpr bool isFloat(DType t) { return t == DType::f32 || t == DType::f16 || t == DType::bf16; }

}  // namespace lowrank

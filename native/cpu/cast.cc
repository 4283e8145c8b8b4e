// Conversion between dtypes: to nearest even among floats, truncation to integers.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"

namespace lowrank {

namespace {

constexpr int64_t kBlock = 1024;  // values that pass through f32 at a time

// Out of range goes to the nearest end, NaN to 0: C++ leaves both open.
template <class T>
T truncate(float x) {
  if (std::isnan(x)) return 0;
  if (x <= static_cast<float>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (x >= static_cast<float>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return static_cast<T>(x);
}

const float* asFloats(const IsaTable& isa, const View& x, int64_t i, int64_t n, float* block) {
  switch (x.dtype) {
    case DType::f32:
      return x.as<float>() + i;
    case DType::f16:
      isa.widenF16(x.as<uint16_t>() + i, block, n);
      break;
    case DType::bf16:
      isa.widenBf16(x.as<uint16_t>() + i, block, n);
      break;
    case DType::f64:
      for (int64_t j = 0; j < n; j++) block[j] = static_cast<float>(x.as<double>()[i + j]);
      break;
    case DType::i32:
      for (int64_t j = 0; j < n; j++) block[j] = static_cast<float>(x.as<int32_t>()[i + j]);
      break;
    case DType::i64:
      for (int64_t j = 0; j < n; j++) block[j] = static_cast<float>(x.as<int64_t>()[i + j]);
      break;
    case DType::u8:
    case DType::boolean:
      for (int64_t j = 0; j < n; j++) block[j] = static_cast<float>(x.as<uint8_t>()[i + j]);
      break;
  }
  return block;
}

void fromFloats(const IsaTable& isa, const float* x, const View& y, int64_t i, int64_t n) {
  switch (y.dtype) {
    case DType::f32:
      std::memcpy(y.as<float>() + i, x, static_cast<size_t>(n) * sizeof(float));
      break;
    case DType::f16:
      isa.narrowF16(x, y.as<uint16_t>() + i, n);
      break;
    case DType::bf16:
      isa.narrowBf16(x, y.as<uint16_t>() + i, n);
      break;
    case DType::f64:
      for (int64_t j = 0; j < n; j++) y.as<double>()[i + j] = x[j];
      break;
    case DType::i32:
      for (int64_t j = 0; j < n; j++) y.as<int32_t>()[i + j] = truncate<int32_t>(x[j]);
      break;
    case DType::i64:
      for (int64_t j = 0; j < n; j++) y.as<int64_t>()[i + j] = truncate<int64_t>(x[j]);
      break;
    case DType::u8:
      for (int64_t j = 0; j < n; j++) y.as<uint8_t>()[i + j] = truncate<uint8_t>(x[j]);
      break;
    case DType::boolean:
      for (int64_t j = 0; j < n; j++) y.as<uint8_t>()[i + j] = x[j] != 0;
      break;
  }
}

bool isInteger(DType t) {
  return t == DType::i32 || t == DType::i64 || t == DType::u8 || t == DType::boolean;
}

int64_t integerAt(const View& x, int64_t i) {
  switch (x.dtype) {
    case DType::i32:
      return x.as<int32_t>()[i];
    case DType::i64:
      return x.as<int64_t>()[i];
    default:
      return x.as<uint8_t>()[i];
  }
}

// Between integers: the low bits are kept, as in two's complement.
void integers(const View& x, const View& y, int64_t i, int64_t n) {
  for (int64_t j = i; j < i + n; j++) {
    int64_t v = integerAt(x, j);
    switch (y.dtype) {
      case DType::i32:
        y.as<int32_t>()[j] = static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint64_t>(v)));
        break;
      case DType::i64:
        y.as<int64_t>()[j] = v;
        break;
      case DType::u8:
        y.as<uint8_t>()[j] = static_cast<uint8_t>(v);
        break;
      default:
        y.as<uint8_t>()[j] = v != 0;
        break;
    }
  }
}

void cast(const Args& args) {
  args.counts(2, 0);
  args.sameShape(0, 1);
  const View &x = args[0], &y = args.writable(1);
  const IsaTable& isa = *args.context.isa;
  args.context.ranges(x.count, Context::kGrain, [&](int64_t from, int64_t to, int) {
    if (x.dtype == y.dtype) {
      size_t size = dtypeSize(x.dtype);
      std::memmove(y.data + static_cast<size_t>(from) * size,
                   x.data + static_cast<size_t>(from) * size,
                   static_cast<size_t>(to - from) * size);
      return;
    }
    float block[kBlock];
    for (int64_t i = from; i < to; i += kBlock) {
      int64_t n = to - i < kBlock ? to - i : kBlock;
      if (isInteger(x.dtype) && isInteger(y.dtype)) {
        integers(x, y, i, n);
      } else {
        fromFloats(isa, asFloats(isa, x, i, n, block), y, i, n);
      }
    }
  });
}

}  // namespace

void registerCast(Registry& r) { r.push_back({"cast", cast}); }

}  // namespace lowrank

// CUDA's half precision, in software: exact widening, rounding to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }

inline float __half2float(__half x) {
  uint32_t sign = static_cast<uint32_t>(x.bits >> 15) << 31, exponent = (x.bits >> 10) & 31,
           mantissa = x.bits & 1023, u;
  if (exponent == 31) {
    u = sign | 0x7f800000u | mantissa << 13;
  } else if (exponent > 0) {
    u = sign | (exponent + 112) << 23 | mantissa << 13;
  } else {
    float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&u, &value, 4);
    u |= sign;
  }
  float y;
  std::memcpy(&y, &u, 4);
  return y;
}

inline __half __float2half_rn(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return {static_cast<uint16_t>(0x7fff)};
  if (u >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (u < 0x38800000u) {
    // Subnormal: the sum with 0.5 leaves the value in units of 2^-24, rounded to nearest even.
    float magnitude;
    std::memcpy(&magnitude, &u, 4);
    magnitude += 0.5f;
    std::memcpy(&u, &magnitude, 4);
    return {static_cast<uint16_t>(sign | (u - 0x3f000000u))};
  }
  u += 0xfff + (u >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((u - 0x38000000u) >> 13))};
}

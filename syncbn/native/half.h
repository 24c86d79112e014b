// The two 16-bit floating-point types: widened exactly, rounded to the nearest, ties to even.
//
// Uses integer operations only, which compilers vectorize for every processor, and which do not
// depend on whether denormals are flushed to zero.

#ifndef SYNCBN_NATIVE_HALF_H_
#define SYNCBN_NATIVE_HALF_H_

#include <stdint.h>
#include <string.h>

namespace {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// IEEE 754 binary16: 5 bits of exponent, 10 of mantissa.
struct Half {
  uint16_t bits;

  Half() = default;
  explicit Half(float value) {
    const uint32_t all = bits_of(value), sign = (all >> 16) & 0x8000, size = all & 0x7FFFFFFF;
    // Below 2^-14 the last bit is 2^-24, like that of a float between 1/2 and 1: adding 1/2 rounds.
    const uint32_t small = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
    const uint32_t normal = (size - (112u << 23) + 0xFFF + ((size >> 13) & 1)) >> 13;
    const uint32_t finite = size < (113u << 23) ? small : normal;
    const uint32_t huge = size > (255u << 23) ? 0x7E00 : 0x7C00;  // NaN or infinity
    bits = static_cast<uint16_t>(sign | (size >= (143u << 23) ? huge : finite));
  }

  explicit operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, size = bits & 0x7FFFu;
    const uint32_t normal = (size << 13) + (112u << 23);
    const uint32_t special = (size << 13) + (224u << 23);
    // mantissa · 2^-24, as the difference of two normal numbers
    const uint32_t small = bits_of(float_of((size << 13) + (113u << 23)) - float_of(113u << 23));
    return float_of(sign | (size < 0x400 ? small : size < 0x7C00 ? normal : special));
  }
  explicit operator double() const { return static_cast<float>(*this); }
};

// The upper half of a float.
struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  explicit BFloat16(float value) {
    const uint32_t all = bits_of(value), rounded = (all + 0x7FFF + ((all >> 16) & 1)) >> 16;
    const bool is_nan = (all & 0x7FFFFFFF) > (255u << 23);
    bits = static_cast<uint16_t>(is_nan ? (all >> 16) | 0x40 : rounded);
  }

  explicit operator float() const { return float_of(static_cast<uint32_t>(bits) << 16); }
  explicit operator double() const { return static_cast<float>(*this); }
};

}  // namespace

#endif  // SYNCBN_NATIVE_HALF_H_

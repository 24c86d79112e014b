// The two 16-bit floating-point types: widened exactly, rounded to the nearest, ties to even.
//
// Uses integer operations only, which compilers vectorize for every processor, and which do not
// depend on whether denormals are flushed to zero; or the instructions of F16C (x86-64-v3), which
// give the same bits, also of NaN: the upper bits are kept, and the quiet bit is set.

#ifndef SYNCBN_NATIVE_HALF_H_
#define SYNCBN_NATIVE_HALF_H_

#include <stdint.h>
#include <string.h>

#ifdef __F16C__
#include <immintrin.h>
#endif

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
    const uint32_t nan = 0x7E00 | (size >> 13 & 0x3FF);
    const uint32_t huge = size > (255u << 23) ? nan : 0x7C00;  // or infinity
    bits = static_cast<uint16_t>(sign | (size >= (143u << 23) ? huge : finite));
  }

  explicit operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, size = bits & 0x7FFFu;
    const uint32_t normal = (size << 13) + (112u << 23);
    const uint32_t quiet = size > 0x7C00 ? 1u << 22 : 0;
    const uint32_t special = ((size << 13) + (224u << 23)) | quiet;
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

#ifdef __F16C__
inline void widen(const Half* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]);
}
inline void narrow(const float* from, int64_t count, Half* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
  for (; i < count; ++i) to[i] = Half(from[i]);
}
#else
inline void widen(const Half* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}
inline void narrow(const float* from, int64_t count, Half* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = Half(from[i]);
}
#endif

}  // namespace

#endif  // SYNCBN_NATIVE_HALF_H_

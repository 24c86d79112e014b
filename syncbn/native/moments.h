// The arithmetic on a few numbers per channel, as in moments.py: the vector to send, the moments.

#ifndef SYNCBN_NATIVE_MOMENTS_H_
#define SYNCBN_NATIVE_MOMENTS_H_

#include <stdint.h>
#include <string.h>

namespace {

template <typename Number>
inline Number min_of(Number a, Number b) {
  return b < a ? b : a;
}

template <typename Number>
inline Number max_of(Number a, Number b) {
  return a < b ? b : a;
}

// Rounded to 16 significant bits: products of two such numbers are exact.
inline double sixteen_bits(double value) {
  int64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  bits = (bits + (int64_t{1} << 36)) & -(int64_t{1} << 37);
  memcpy(&value, &bits, sizeof(bits));
  return value;
}

// The value of the last of `digits` significant bits: a power of two, or 0 for 0.
inline double last_bit(double value, int digits) {
  int64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  bits &= int64_t{0x7FF} << 52;
  memcpy(&value, &bits, sizeof(bits));
  return value * (1.0 / (int64_t{1} << (digits - 1)));
}

// The vector to send, 4C+2 numbers: see moments.py.
void pack(double count, const double* pivot, const double* r, const double* q, int64_t channels,
          double* wire) {
  const double coarse = sixteen_bits(count), fine = count - coarse;
  const double of_count = max_of(last_bit(coarse, 8), 1.0);
  wire[0] = coarse, wire[1] = fine;
  double* parts = wire + 2;
  for (int64_t c = 0; c < channels; ++c) {
    const double k = pivot[c], moved = fine * k, all = moved + r[c];
    const double unit = of_count * last_bit(k, 16);
    const double whole = unit > 0 ? __builtin_nearbyint(all / unit) * unit : 0.0;
    const double rest = all - whole;
    parts[c] = coarse * k + whole;
    parts[channels + c] = coarse * (k * k) + 2.0 * k * whole;
    parts[2 * channels + c] = rest;
    parts[3 * channels + c] = k * (2.0 * rest - moved) + q[c];
  }
}

// Count, means, population variances and rounding errors of the means (1, C, C, C) from the summed
// wire: see moments.py.
void merge(const double* wire, int64_t channels, double* moments) {
  const double coarse = wire[0], fine = wire[1], count = coarse + fine;
  const double inverse = count > 0 ? 1.0 / count : 0.0;
  const double *first = wire + 2, *second = first + channels;
  const double *r = second + channels, *q = r + channels;
  moments[0] = count;
  for (int64_t c = 0; c < channels; ++c) {
    const double k = sixteen_bits(coarse > 0 ? first[c] / coarse : 0.0);
    const double moved = first[c] - k * coarse;
    const double spread = (second[c] - k * first[c]) - k * moved;
    const double remainder = r[c] - fine * k;
    const double low = (moved + remainder) * inverse;
    const double square = (spread + ((q[c] - k * r[c]) - k * remainder)) * inverse;
    const double mean = k + low, added = mean - k;
    moments[1 + c] = mean;
    moments[1 + channels + c] = max_of(square - low * low, 0.0);
    moments[1 + 2 * channels + c] = (k - (mean - added)) + (low - added);
  }
}

}  // namespace

#endif  // SYNCBN_NATIVE_MOMENTS_H_

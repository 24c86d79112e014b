// The mathematics of moments.py as loop bodies, for any type of values.
//
// In is the storage type (half precision, float or double), T the compute type (double for double,
// otherwise float).
//
// Memory traffic determines the speed: forward reads x twice and writes y, backward reads dy and x
// twice and writes dx. A residual is read once forward; with a rectifier it is read once backward,
// and its gradient, dy behind the rectifier, is written once and read instead of dy.

#ifndef SYNCBN_NATIVE_KERNELS_H_
#define SYNCBN_NATIVE_KERNELS_H_

#include <stdint.h>

#include "arithmetic.h"
#include "half.h"
#include "loops.h"
#include "moments.h"
#include "pieces.h"
#include "sums.h"

namespace {

using syncbn::Rectifier;

template <typename In>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};

// A value near the data of each channel: the median of three positions of positive weight, so that
// a single outlier cannot become the pivot.
template <typename In, typename T = typename ComputeType<In>::type>
void choose_pivot(const In* x, Planes p, const T* weights, double* pivot) {
  const int64_t n = p.outer * p.inner;
  int64_t begin = 0, middle_position = n / 2, end = n - 1;
  if (weights != nullptr) {
    while (begin < n && !(weights[begin] > 0)) ++begin;
    while (end > begin && !(weights[end] > 0)) --end;
    while (middle_position < end && !(weights[middle_position] > 0)) ++middle_position;
    if (middle_position > end || middle_position < begin) middle_position = end;
  }
  for (int64_t c = 0; c < p.channels; ++c) {
    if (begin >= n) {
      pivot[c] = 0;
      continue;
    }
    const auto at = [&](int64_t position) {
      return static_cast<double>(static_cast<typename ComputeType<In>::type>(
          x[position / p.inner * p.stride() + c * p.inner + position % p.inner]));
    };
    const double first = at(begin), middle = at(middle_position), last = at(end);
    pivot[c] = sixteen_bits(max_of(min_of(first, middle), min_of(max_of(first, middle), last)));
  }
}

// Whether `value` is neither NaN nor infinite.
template <typename T>
inline bool finite(T value) {
  return value - value == 0;
}

// Loop bodies have a weight as last argument, or none: then it is 1.
inline bool positive() { return true; }
template <typename T>
inline bool positive(T weight) {
  return weight > 0;
}
template <typename T>
inline T weighted(T value) {
  return value;
}
template <typename T>
inline T weighted(T value, T weight) {
  return weight * value;
}
// Whether a deviation is used: one that is not finite is ignored if its weight is zero.
template <typename T, typename... Weight>
inline bool counts(T deviation, Weight... weight) {
  return positive(weight...) || finite(deviation);
}

// r += Σw(x − pivot), q += Σw(x − pivot)²; w = 1 without weights. A value of weight zero is
// ignored, even if it is not finite.
template <typename In, typename T = typename ComputeType<In>::type>
void local_sums(const In* __restrict x, Planes p, const T* weights, const double* pivot, double* r,
                double* q) {
  Buffer<T> folded(width_of(p.channels));
  fold(p.channels, folded.data(), [=](int64_t c) { return static_cast<T>(pivot[c]); });
  const T* __restrict k = folded.data();
  Source<In, T> source(x, longest_piece(p));
  const auto piece = [&source, k](int64_t start, int64_t count) {
    const auto v = source.at(start, count);
    return [v, k](int64_t i, int64_t c, auto... weight) {
      const T d = positive(weight...) ? v[i] - k[c] : T(0);
      return Two<T>{weighted(d, weight...), weighted(d * d, weight...)};
    };
  };
  if (weights != nullptr) return weighted_sums<T>(p, weights, r, q, piece);
  channel_sums<T>(p, r, q, piece);
}

// The rounding error of a channel's mean in T.
template <typename T>
double low_part(const double* moments, int64_t channels, int64_t c) {
  const double mean = moments[1 + c], rest = moments[1 + 2 * channels + c];
  return (mean - static_cast<T>(mean)) + rest;
}

// The coefficients of each value: six folded rows. The mean has two parts, high and low: a single
// float has an error of half a percent of the standard deviation at mean/std 1e5.
template <typename Pointer>
struct Terms {
  Pointer high, low, factor, offset, constant, slope;

  Terms(Pointer rows, int64_t channels)
      : high(rows),
        low(high + width_of(channels)),
        factor(low + width_of(channels)),
        offset(factor + width_of(channels)),
        constant(offset + width_of(channels)),
        slope(constant + width_of(channels)) {}
};

// The activation after the normalization, and after the addition of a residual.
enum class After { kNothing, kRelu, kRectifier };

// NaN stays NaN.
template <After after, typename T>
inline T activated(T z, T slope, T cap) {
  if (after == After::kRelu) return z < 0 ? T(0) : z;
  if (after == After::kRectifier) return z < 0 ? z * slope : z > cap ? cap : z;
  return z;
}

template <typename T>
int64_t terms_size(int64_t channels) {
  return 6 * width_of(channels) * sizeof(T);
}

// The coefficients of z = (x − mean)·factor + offset.
template <typename T>
void normalization_terms(const double* moments, int64_t channels, double epsilon, const T* scale,
                         const T* offset, T* rows) {
  const Terms<T*> terms(rows, channels);
  const double *mean = moments + 1, *variance = mean + channels;
  fold(channels, terms.high, [=](int64_t c) { return static_cast<T>(mean[c]); });
  fold(channels, terms.low,
       [=](int64_t c) { return static_cast<T>(low_part<T>(moments, channels, c)); });
  fold(channels, terms.factor,
       [=](int64_t c) { return static_cast<T>(scale[c] / __builtin_sqrt(variance[c] + epsilon)); });
  fold(channels, terms.offset, [=](int64_t c) { return offset[c]; });
}

// A non-finite value of weight zero is replaced by the mean.
template <typename In, After after, bool adds, typename T = typename ComputeType<In>::type>
void normalize(const In* x, const In* residual, Planes p, const T* weights, const T* rows,
               Rectifier rectifier, In* y) {
  const Terms<const T*> terms(rows, p.channels);
  const T* __restrict h = terms.high;
  const T* __restrict l = terms.low;
  const T* __restrict f = terms.factor;
  const T* __restrict b = terms.offset;
  const T slope = static_cast<T>(rectifier.slope), cap = static_cast<T>(rectifier.cap);
  const int64_t longest = longest_piece(p);
  Source<In, T> xs(x, longest), residuals(residual, adds ? longest : 0);
  Sink<In, T> ys(y, longest);
  const auto piece = [&](int64_t start, int64_t count) {
    const auto xv = xs.at(start, count), rv = residuals.at(start, adds ? count : 0);
    const auto yv = ys.at(start);
    return [=](int64_t i, int64_t c, auto... weight) {
      const T d = (xv[i] - h[c]) - l[c];
      T z = (counts(d, weight...) ? d : T(0)) * f[c] + b[c];
      if (adds) z += rv[i];
      yv[i] = activated<after>(z, slope, cap);
    };
  };
  const auto done = [&](int64_t start, int64_t count) { ys.store(start, count); };
  if (weights != nullptr) return each_weighted_value(p, weights, piece, done);
  each_value(p, piece, done);
}

template <typename T>
void move(const T* now, const double* target, double momentum, int64_t channels, T* next) {
  for (int64_t c = 0; c < channels; ++c)
    next[c] = static_cast<T>(now[c] * momentum + target[c] * (1 - momentum));
}

// Σw, in order.
template <typename T>
double total(const T* weights, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += weights[i];
  return sum;
}

template <typename In>
double sum_of_squares(const In* x, int64_t size) {
  constexpr int64_t kLanes = 8;  // independent sums, which the compiler vectorizes
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = static_cast<double>(x[i + lane]);
      lanes[lane] += value * value;
    }
  for (; i < size; ++i) lanes[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

#endif  // SYNCBN_NATIVE_KERNELS_H_

// The backward pass of kernels.h.

#ifndef SYNCBN_NATIVE_GRADIENTS_H_
#define SYNCBN_NATIVE_GRADIENTS_H_

#include <stdint.h>

#include "arithmetic.h"
#include "kernels.h"
#include "loops.h"
#include "pieces.h"
#include "sums.h"

namespace {

// g times the derivative of the activation at z, with TensorFlow's values at the discontinuities.
template <After after, typename T>
inline T through_activation(T g, T z, T slope, T cap) {
  if (after == After::kRelu) return z > 0 ? g : T(0);
  if (after == After::kRectifier) return g * (z > 0 ? (z < cap ? T(1) : T(0)) : slope);
  return g;
}

// r += Σg, q += Σg·(x − mean), with the mean rounded to T, and g multiplied by the derivative of
// the activation `after`; with a residual (`adds`) it is that of the rectifier, and the product is
// stored in `through`, which may alias g.
// A non-finite value of weight zero is replaced by the mean.
template <typename In, After after, bool adds, typename T = typename ComputeType<In>::type>
void gradient_sums(const In* g, const In* x, const In* residual, Planes p, const T* weights,
                   const double* moments, const T* rows, Rectifier rectifier, double* r, double* q,
                   In* through) {
  const double* mean = moments + 1;
  const int64_t width = width_of(p.channels), longest = longest_piece(p);
  Buffer<T> folded(width), rounded_off(weights == nullptr ? 0 : width);
  fold(p.channels, folded.data(), [=](int64_t c) { return static_cast<T>(mean[c]); });
  if (weights != nullptr)
    fold(p.channels, rounded_off.data(),
         [=](int64_t c) { return static_cast<T>(low_part<T>(moments, p.channels, c)); });
  const T* __restrict h = folded.data();
  const T* __restrict m = rounded_off.data();
  const Terms<const T*> terms(rows, adds || after != After::kNothing ? p.channels : 0);
  const T* __restrict l = terms.low;
  const T* __restrict f = terms.factor;
  const T* __restrict b = terms.offset;
  const T slope = static_cast<T>(rectifier.slope), cap = static_cast<T>(rectifier.cap);
  Source<In, T> gs(g, longest), xs(x, longest), residuals(residual, adds ? longest : 0);
  Sink<In, T> products(through, adds ? longest : 0);
  Source<In, T> stored(through, adds ? longest : 0);

  const auto deviation = [=](T value, int64_t c, auto... weight) {
    const T off = value - h[c];
    return counts(off, weight...) ? off : m[c];
  };
  if constexpr (adds) {
    const auto piece = [&](int64_t start, int64_t count) {
      const auto gv = gs.at(start, count), xv = xs.at(start, count);
      const auto rv = residuals.at(start, count);
      const auto product = products.at(start);
      const auto multiply = [&](auto through) {
        each_of_piece(p, weights, start, count, [=](int64_t i, int64_t c, auto... weight) {
          const T d = deviation(xv[i], c, weight...);
          product[i] = through(gv[i], ((d - l[c]) * f[c] + b[c]) + rv[i]);
        });
      };
      if (slope == 0 && !finite(cap))
        multiply([=](T v, T z) { return through_activation<After::kRelu>(v, z, slope, cap); });
      else
        multiply([=](T v, T z) { return through_activation<After::kRectifier>(v, z, slope, cap); });
      products.store(start, count);
      // As rounded: dx, whose sum is zero, is computed from them, too.
      const auto sv = stored.at(start, count);
      return [=](int64_t i, int64_t c, auto... weight) {
        const T value = sv[i];
        return Two<T>{value, value * deviation(xv[i], c, weight...)};
      };
    };
    if (weights != nullptr) return weighted_sums<T>(p, weights, r, q, piece);
    return channel_sums<T>(p, r, q, piece);
  }
  const auto piece = [&](int64_t start, int64_t count) {
    const auto gv = gs.at(start, count), xv = xs.at(start, count);
    return [=](int64_t i, int64_t c, auto... weight) {
      const T d = deviation(xv[i], c, weight...);
      T value = gv[i];
      if (after != After::kNothing)
        value = through_activation<after>(value, (d - l[c]) * f[c] + b[c], slope, cap);
      return Two<T>{value, value * d};
    };
  };
  if (weights != nullptr) return weighted_sums<T>(p, weights, r, q, piece);
  channel_sums<T>(p, r, q, piece);
}

// The wire and the gradients of γ and β from Σg and Σg·(x − mean), the mean rounded to T.
template <typename T>
void finish_gradient_sums(const double* sums, const double* moments, int64_t channels,
                          double epsilon, const T* scale, double* wire, T* of_scale, T* of_offset) {
  const double* variance = moments + 1 + channels;
  for (int64_t c = 0; c < channels; ++c) {
    // The rounding error of the mean is the same for all values.
    const double first = sums[c];
    const double second = sums[channels + c] - low_part<T>(moments, channels, c) * first;
    wire[c] = scale[c] * first;
    wire[channels + c] = scale[c] * second;
    of_scale[c] = static_cast<T>(second / __builtin_sqrt(variance[c] + epsilon));
    of_offset[c] = static_cast<T>(first);
  }
}

// The coefficients of dx = g·factor − constant − (x − mean)·slope. `sums` has Σγ·g and
// Σγ·g·(x − mean) over all ranks.
template <typename T>
void gradient_terms(const double* moments, int64_t channels, double epsilon, const T* scale,
                    const T* offset, const double* sums, T* rows) {
  normalization_terms(moments, channels, epsilon, scale, offset, rows);
  const Terms<T*> terms(rows, channels);
  const double* variance = moments + 1 + channels;
  const double per_sample = moments[0] > 0 ? 1.0 / moments[0] : 0.0;
  const auto inverse = [=](int64_t c) { return 1.0 / __builtin_sqrt(variance[c] + epsilon); };
  fold(channels, terms.constant,
       [=](int64_t c) { return static_cast<T>(inverse(c) * sums[c] * per_sample); });
  fold(channels, terms.slope, [=](int64_t c) {
    const double cube = inverse(c) * inverse(c) * inverse(c);
    return static_cast<T>(cube * sums[channels + c] * per_sample);
  });
}

// dx may alias g.
template <typename In, After after, typename T = typename ComputeType<In>::type>
void input_gradient(const In* g, const In* x, Planes p, const T* weights, const T* rows,
                    Rectifier rectifier, In* dx) {
  const Terms<const T*> terms(rows, p.channels);
  const T* __restrict h = terms.high;
  const T* __restrict l = terms.low;
  const T* __restrict f = terms.factor;
  const T* __restrict o = terms.offset;
  const T* __restrict a = terms.constant;
  const T* __restrict b = terms.slope;
  const T slope = static_cast<T>(rectifier.slope), cap = static_cast<T>(rectifier.cap);
  const int64_t longest = longest_piece(p);
  Source<In, T> gs(g, longest), xs(x, longest);
  Sink<In, T> results(dx, longest);
  const auto piece = [&](int64_t start, int64_t count) {
    const auto gv = gs.at(start, count), xv = xs.at(start, count);
    const auto result = results.at(start);
    return [=](int64_t i, int64_t c, auto... weight) {
      const T d = (xv[i] - h[c]) - l[c];
      T value = gv[i];
      if (after != After::kNothing)
        value = through_activation<after>(value, d * f[c] + o[c], slope, cap);
      const T shared = a[c] + d * b[c];
      const T through = value * f[c] - weighted(shared, weight...);
      result[i] = counts(d, weight...) ? through : T(0);
    };
  };
  const auto done = [&](int64_t start, int64_t count) { results.store(start, count); };
  if (weights != nullptr) return each_weighted_value(p, weights, piece, done);
  each_value(p, piece, done);
}

}  // namespace

#endif  // SYNCBN_NATIVE_GRADIENTS_H_

// The mathematics of moments.py as loops over memory; knows neither TensorFlow nor a communicator.
//
// Values lie as (outer, channels, inner): any channel axis, no transposition. In is what is stored
// (half precision, float or double), T what is computed in (float, or double for double). Sums run
// in T over short blocks and are widened to double between them.
//
// Speed is a matter of bytes: forward reads x twice and writes y, backward reads dy and x twice and
// writes dx. The second pass of each direction starts where the first one ended, on what the cache
// still holds; hence the first goes from the last block to the first.

#ifndef SYNCBN_NATIVE_KERNELS_H_
#define SYNCBN_NATIVE_KERNELS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "moments.h"

namespace syncbn {

// Rows of channels are folded until they are this wide, so that few channels fill the vector units
// as well as many.
constexpr int64_t kWidth = 512;

// Folded rows added up in float before widening: the rounding of a partial sum stays below 1e-6.
constexpr int64_t kBlock = 128;

template <typename In>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};

struct Planes {
  int64_t outer, channels, inner;
  int64_t size() const { return outer * channels * inner; }
  // Where work may be cut: whole rows of channels, or whole outer indices.
  Planes part(int64_t count) const { return {count, channels, inner}; }
  int64_t stride() const { return channels * inner; }
};

// One value per column of a folded row.
template <typename T>
class Folded {
 public:
  explicit Folded(int64_t channels)
      : fold_(std::max<int64_t>(1, kWidth / channels)), channels_(channels), v_(fold_ * channels) {}

  template <typename Value>
  Folded(int64_t channels, Value value) : Folded(channels) {
    for (int64_t c = 0; c < channels; ++c) v_[c] = value(c);
    for (int64_t f = 1; f < fold_; ++f) std::copy_n(v_.data(), channels, &v_[f * channels]);
  }

  int64_t width() const { return static_cast<int64_t>(v_.size()); }
  T* data() { return v_.data(); }
  const T* data() const { return v_.data(); }

  // Adds the columns of each channel to total, and starts again from zero.
  void drain(double* total) {
    for (int64_t f = 0; f < fold_; ++f)
      for (int64_t c = 0; c < channels_; ++c) total[c] += v_[f * channels_ + c];
    std::fill(v_.begin(), v_.end(), T(0));
  }

 private:
  int64_t fold_, channels_;
  std::vector<T> v_;
};

// A value near the data of each channel: the median of three positions, so that one outlier, in
// whatever position, cannot become the pivot.
template <typename In>
void choose_pivot(const In* x, Planes p, double* pivot) {
  const int64_t n = p.outer * p.inner;
  for (int64_t c = 0; c < p.channels; ++c) {
    if (n == 0) {
      pivot[c] = 0;
      continue;
    }
    const auto at = [&](int64_t position) {
      return static_cast<double>(static_cast<typename ComputeType<In>::type>(
          x[position / p.inner * p.stride() + c * p.inner + position % p.inner]));
    };
    const double first = at(0), middle = at(n / 2), last = at(n - 1);
    pivot[c] = sixteen_bits(
        std::max(std::min(first, middle), std::min(std::max(first, middle), last)));
  }
}

// The loop behind both kinds of sums: terms(i, column, s, t) adds the two terms of value i to s and
// t; r and q (C, double) take the totals.
template <typename T, typename Terms>
void channel_sums(Planes p, double* r, double* q, Terms terms) {
  if (p.inner > 1) {
    constexpr int64_t kLanes = 16, kRun = 16 * kBlock;
    for (int64_t run = p.outer * p.channels - 1; run >= 0; --run) {
      const int64_t c = run % p.channels, end = (run + 1) * p.inner;
      for (int64_t start = run * p.inner; start < end; start += kRun) {
        T s[kLanes] = {}, t[kLanes] = {};
        const int64_t stop = std::min(start + kRun, end), whole = start + (stop - start) / kLanes * kLanes;
        for (int64_t i = start; i < whole; i += kLanes)
          for (int64_t l = 0; l < kLanes; ++l) terms(i + l, c, s[l], t[l]);
        for (int64_t i = whole; i < stop; ++i) terms(i, c, s[0], t[0]);
        for (int64_t l = 0; l < kLanes; ++l) r[c] += s[l], q[c] += t[l];
      }
    }
    return;
  }
  Folded<T> first(p.channels), second(p.channels);
  const int64_t width = first.width(), rows = p.size() / width;
  T* __restrict s = first.data();
  T* __restrict t = second.data();
  for (int64_t i = rows * width; i < p.size(); ++i) {
    const int64_t c = i - rows * width;
    terms(i, c, s[c], t[c]);
  }
  for (int64_t start = (rows - 1) / kBlock * kBlock; start >= 0; start -= kBlock) {
    const int64_t stop = std::min(start + kBlock, rows);
    int64_t row = start;
    for (; row + 4 <= stop; row += 4)
#pragma GCC ivdep
      for (int64_t c = 0; c < width; ++c) {
        T a = s[c], b = t[c];
        for (int64_t k = 0; k < 4; ++k) terms((row + k) * width + c, c, a, b);
        s[c] = a, t[c] = b;
      }
    for (; row < stop; ++row)
#pragma GCC ivdep
      for (int64_t c = 0; c < width; ++c) terms(row * width + c, c, s[c], t[c]);
    first.drain(r), second.drain(q);
  }
}

// r += Σ(x − pivot), q += Σ(x − pivot)².
template <typename In>
void local_sums(const In* __restrict x, Planes p, const double* pivot, double* r, double* q) {
  using T = typename ComputeType<In>::type;
  const Folded<T> folded(p.channels, [&](int64_t c) { return static_cast<T>(pivot[c]); });
  const T* __restrict k = folded.data();
  channel_sums<T>(p, r, q, [x, k](int64_t i, int64_t c, T& s, T& t) {
    const T d = static_cast<T>(x[i]) - k[c];
    s += d;
    t += d * d;
  });
}

// r += Σg, q += Σg·(x − mean).
template <typename In>
void local_gradient_sums(const In* __restrict g, const In* __restrict x, Planes p,
                         const double* mean, double* r, double* q) {
  using T = typename ComputeType<In>::type;
  const Folded<T> folded(p.channels, [&](int64_t c) { return static_cast<T>(mean[c]); });
  const T* __restrict h = folded.data();
  channel_sums<T>(p, r, q, [g, x, h](int64_t i, int64_t c, T& s, T& t) {
    const T value = static_cast<T>(g[i]);
    s += value;
    t += value * (static_cast<T>(x[i]) - h[c]);
  });
}

// The part of a channel's mean that T rounds off.
template <typename T>
double low_part(const double* moments, int64_t channels, int64_t c) {
  const double mean = moments[1 + c], rest = moments[1 + 2 * channels + c];
  return (mean - static_cast<T>(mean)) + rest;
}

// What happens to each value, by channel. The mean goes in two parts, high and low: one float would
// be off by half a percent of the deviation at mean/deviation 1e5.
template <typename T>
struct Terms {
  Folded<T> high, low, factor, constant, slope;

  // Of y = (x − mean)·factor + constant.
  static Terms of_normalization(const double* moments, int64_t channels, double epsilon,
                                const T* scale, const T* offset) {
    const double *mean = moments + 1, *variance = mean + channels;
    return {Folded<T>(channels, [=](int64_t c) { return static_cast<T>(mean[c]); }),
            Folded<T>(channels, [=](int64_t c) { return static_cast<T>(low_part<T>(moments, channels, c)); }),
            Folded<T>(channels, [=](int64_t c) {
              return static_cast<T>(scale[c] / std::sqrt(variance[c] + epsilon));
            }),
            Folded<T>(channels, [=](int64_t c) { return offset[c]; }), Folded<T>(1)};
  }

  // Of dx = g·factor − constant − (x − mean)·slope. `sums` holds Σγ·g and Σγ·g·(x − mean) over all
  // ranks.
  static Terms of_gradient(const double* moments, int64_t channels, double epsilon, const T* scale,
                           const double* sums) {
    Terms terms = of_normalization(moments, channels, epsilon, scale, scale);
    const double* variance = moments + 1 + channels;
    const double per_sample = moments[0] > 0 ? 1.0 / moments[0] : 0.0;
    const auto inverse = [=](int64_t c) { return 1.0 / std::sqrt(variance[c] + epsilon); };
    terms.constant = Folded<T>(channels, [&](int64_t c) {
      return static_cast<T>(inverse(c) * sums[c] * per_sample);
    });
    terms.slope = Folded<T>(channels, [&](int64_t c) {
      return static_cast<T>(std::pow(inverse(c), 3) * sums[channels + c] * per_sample);
    });
    return terms;
  }
};

// Calls body(i, column) for every value, in any order (`ivdep`: bodies do not depend on each other).
template <typename Body>
void each_value(Planes p, int64_t width, Body body) {
  if (p.inner > 1) {
    for (int64_t run = 0; run < p.outer * p.channels; ++run) {
      const int64_t c = run % p.channels;
#pragma GCC ivdep
      for (int64_t i = run * p.inner; i < (run + 1) * p.inner; ++i) body(i, c);
    }
    return;
  }
  for (int64_t start = 0; start < p.size(); start += width) {
    const int64_t columns = std::min(width, p.size() - start);
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) body(start + c, c);
  }
}

template <typename In, typename T>
void normalize(const In* __restrict x, Planes p, const Terms<T>& terms, In* __restrict y) {
  const T* __restrict h = terms.high.data();
  const T* __restrict l = terms.low.data();
  const T* __restrict f = terms.factor.data();
  const T* __restrict b = terms.constant.data();
  each_value(p, terms.high.width(), [=](int64_t i, int64_t c) {
    y[i] = static_cast<In>(((static_cast<T>(x[i]) - h[c]) - l[c]) * f[c] + b[c]);
  });
}

// dx may be the very memory of g.
template <typename In, typename T>
void input_gradient(const In* g, const In* __restrict x, Planes p, const Terms<T>& terms, In* dx) {
  const T* __restrict h = terms.high.data();
  const T* __restrict l = terms.low.data();
  const T* __restrict f = terms.factor.data();
  const T* __restrict a = terms.constant.data();
  const T* __restrict b = terms.slope.data();
  each_value(p, terms.high.width(), [=](int64_t i, int64_t c) {
    dx[i] = static_cast<In>(static_cast<T>(g[i]) * f[c] - a[c] -
                            ((static_cast<T>(x[i]) - h[c]) - l[c]) * b[c]);
  });
}

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_KERNELS_H_

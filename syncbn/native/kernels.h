// The mathematics of moments.py as loops over memory, for any type of values.
//
// In is what is stored (half precision, float or double), T what is computed in (float, or double
// for double). Sums run in T over short blocks and are widened to double between them. Which values
// are added to which, and in what order, is laid down here and depends on no processor: lanes and
// columns are as many for narrow vector units as for wide ones, and products are rounded before
// they are added
// (-ffp-contract=off). So every level of instructions gives the same bits.
//
// Speed is a matter of bytes: forward reads x twice and writes y, backward reads dy and x twice and
// writes dx. The second pass of each direction starts where the first one ended, on what the cache
// still holds; hence the first goes from the last block to the first.

#ifndef SYNCBN_NATIVE_KERNELS_H_
#define SYNCBN_NATIVE_KERNELS_H_

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "arithmetic.h"
#include "half.h"
#include "moments.h"

// The next loop's passes do not depend on each other, whatever the pointers look like.
#ifdef __clang__
#define SYNCBN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define SYNCBN_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace {

using syncbn::Planes;

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

// So many rows are folded into one.
inline int64_t fold_of(int64_t channels) {
  return most<int64_t>(1, kWidth / most<int64_t>(1, channels));
}
inline int64_t width_of(int64_t channels) { return fold_of(channels) * channels; }

// One value per column of a folded row: those of the channels, one group after the other.
template <typename T, typename Value>
void fold(int64_t channels, T* columns, Value value) {
  for (int64_t c = 0; c < channels; ++c) columns[c] = value(c);
  for (int64_t f = 1; f < fold_of(channels); ++f)
    memcpy(columns + f * channels, columns, channels * sizeof(T));
}

// Adds the columns of each channel to total, and starts again from zero.
template <typename T>
void drain(int64_t channels, T* columns, double* total) {
  for (int64_t f = 0; f < fold_of(channels); ++f)
    for (int64_t c = 0; c < channels; ++c) total[c] += columns[f * channels + c];
  memset(columns, 0, width_of(channels) * sizeof(T));
}

// Memory on a line of the cache, all zero.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const size_t bytes = (most<int64_t>(1, count) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(aligned_alloc(64, bytes));
    if (data_ == nullptr) abort();
    memset(data_, 0, bytes);
  }
  ~Buffer() { free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }

 private:
  T* data_;
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
    pivot[c] = sixteen_bits(most(least(first, middle), least(most(first, middle), last)));
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
        const int64_t stop = least(start + kRun, end),
                      whole = start + (stop - start) / kLanes * kLanes;
        for (int64_t i = start; i < whole; i += kLanes)
          for (int64_t l = 0; l < kLanes; ++l) terms(i + l, c, s[l], t[l]);
        for (int64_t i = whole; i < stop; ++i) terms(i, c, s[0], t[0]);
        for (int64_t l = 0; l < kLanes; ++l) r[c] += s[l], q[c] += t[l];
      }
    }
    return;
  }
  const int64_t width = width_of(p.channels), rows = width > 0 ? p.size() / width : 0;
  Buffer<T> first(width), second(width);
  T* __restrict s = first.data();
  T* __restrict t = second.data();
  for (int64_t i = rows * width; i < p.size(); ++i) {
    const int64_t c = i - rows * width;
    terms(i, c, s[c], t[c]);
  }
  for (int64_t start = (rows - 1) / kBlock * kBlock; start >= 0; start -= kBlock) {
    const int64_t stop = least(start + kBlock, rows);
    int64_t row = start;
    for (; row + 4 <= stop; row += 4) {
      SYNCBN_INDEPENDENT
      for (int64_t c = 0; c < width; ++c) {
        T a = s[c], b = t[c];
        for (int64_t k = 0; k < 4; ++k) terms((row + k) * width + c, c, a, b);
        s[c] = a, t[c] = b;
      }
    }
    for (; row < stop; ++row) {
      SYNCBN_INDEPENDENT
      for (int64_t c = 0; c < width; ++c) terms(row * width + c, c, s[c], t[c]);
    }
    drain(p.channels, s, r), drain(p.channels, t, q);
  }
}

// r += Σ(x − pivot), q += Σ(x − pivot)².
template <typename In>
void local_sums(const In* __restrict x, Planes p, const double* pivot, double* r, double* q) {
  using T = typename ComputeType<In>::type;
  Buffer<T> folded(width_of(p.channels));
  fold(p.channels, folded.data(), [=](int64_t c) { return static_cast<T>(pivot[c]); });
  const T* __restrict k = folded.data();
  channel_sums<T>(p, r, q, [x, k](int64_t i, int64_t c, T& s, T& t) {
    const T d = static_cast<T>(x[i]) - k[c];
    s += d;
    t += d * d;
  });
}

// r += Σg, q += Σg·(x − mean).
template <typename In>
void gradient_sums(const In* __restrict g, const In* __restrict x, Planes p, const double* mean,
                   double* r, double* q) {
  using T = typename ComputeType<In>::type;
  Buffer<T> folded(width_of(p.channels));
  fold(p.channels, folded.data(), [=](int64_t c) { return static_cast<T>(mean[c]); });
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

// The wire and the gradients of γ and β from Σg and Σg·(x − mean), the mean rounded to T.
template <typename T>
void finish_gradient_sums(const double* sums, const double* moments, int64_t channels,
                          double epsilon, const T* scale, double* wire, T* of_scale, T* of_offset) {
  const double* variance = moments + 1 + channels;
  for (int64_t c = 0; c < channels; ++c) {
    // What the mean lost when it was rounded is the same for all values.
    const double first = sums[c];
    const double second = sums[channels + c] - low_part<T>(moments, channels, c) * first;
    wire[c] = scale[c] * first;
    wire[channels + c] = scale[c] * second;
    of_scale[c] = static_cast<T>(second / __builtin_sqrt(variance[c] + epsilon));
    of_offset[c] = static_cast<T>(first);
  }
}

// What happens to each value: five folded rows. The mean goes in two parts, high and low: one float
// would be off by half a percent of the deviation at mean/deviation 1e5.
template <typename Pointer>
struct Terms {
  Pointer high, low, factor, constant, slope;

  Terms(Pointer rows, int64_t channels)
      : high(rows),
        low(high + width_of(channels)),
        factor(low + width_of(channels)),
        constant(factor + width_of(channels)),
        slope(constant + width_of(channels)) {}
};

template <typename T>
int64_t terms_size(int64_t channels) {
  return 5 * width_of(channels) * sizeof(T);
}

// Of y = (x − mean)·factor + constant.
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
  fold(channels, terms.constant, [=](int64_t c) { return offset[c]; });
}

// Of dx = g·factor − constant − (x − mean)·slope. `sums` holds Σγ·g and Σγ·g·(x − mean) over all
// ranks.
template <typename T>
void gradient_terms(const double* moments, int64_t channels, double epsilon, const T* scale,
                    const double* sums, T* rows) {
  normalization_terms(moments, channels, epsilon, scale, scale, rows);
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

// Calls body(i, column) for every value, in any order: bodies do not depend on each other.
template <typename Body>
void each_value(Planes p, Body body) {
  if (p.inner > 1) {
    for (int64_t run = 0; run < p.outer * p.channels; ++run) {
      const int64_t c = run % p.channels;
      SYNCBN_INDEPENDENT
      for (int64_t i = run * p.inner; i < (run + 1) * p.inner; ++i) body(i, c);
    }
    return;
  }
  const int64_t width = width_of(p.channels);
  for (int64_t start = 0; start < p.size(); start += width) {
    const int64_t columns = least(width, p.size() - start);
    SYNCBN_INDEPENDENT
    for (int64_t c = 0; c < columns; ++c) body(start + c, c);
  }
}

template <typename In, typename T = typename ComputeType<In>::type>
void normalize(const In* __restrict x, Planes p, const T* rows, In* __restrict y) {
  const Terms<const T*> terms(rows, p.channels);
  const T* __restrict h = terms.high;
  const T* __restrict l = terms.low;
  const T* __restrict f = terms.factor;
  const T* __restrict b = terms.constant;
  each_value(p, [=](int64_t i, int64_t c) {
    y[i] = static_cast<In>(((static_cast<T>(x[i]) - h[c]) - l[c]) * f[c] + b[c]);
  });
}

// dx may be the very memory of g.
template <typename In, typename T = typename ComputeType<In>::type>
void input_gradient(const In* g, const In* __restrict x, Planes p, const T* rows, In* dx) {
  const Terms<const T*> terms(rows, p.channels);
  const T* __restrict h = terms.high;
  const T* __restrict l = terms.low;
  const T* __restrict f = terms.factor;
  const T* __restrict a = terms.constant;
  const T* __restrict b = terms.slope;
  each_value(p, [=](int64_t i, int64_t c) {
    dx[i] = static_cast<In>(static_cast<T>(g[i]) * f[c] - a[c] -
                            ((static_cast<T>(x[i]) - h[c]) - l[c]) * b[c]);
  });
}

template <typename T>
void move(const T* now, const double* target, double momentum, int64_t channels, T* next) {
  for (int64_t c = 0; c < channels; ++c)
    next[c] = static_cast<T>(now[c] * momentum + target[c] * (1 - momentum));
}

template <typename In>
double sum_of_squares(const In* x, int64_t size) {
  constexpr int64_t kLanes = 8;  // sums side by side, which the compiler makes into vectors
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

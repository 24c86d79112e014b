// Loops over all values by channel: sums in a fixed order, and elementwise loops.
//
// Sums accumulate in T over short blocks, and in double over blocks. The order of additions is
// fixed here and independent of the processor: the number of lanes and columns does not depend on
// the width of vector units, and products are rounded before they are added (-ffp-contract=off). So
// all instruction set levels give bitwise equal results.
//
// The second pass of each direction starts where the first one ended, on data still in the cache;
// so the first pass, which sums, runs from the last block to the first.

#ifndef SYNCBN_NATIVE_LOOPS_H_
#define SYNCBN_NATIVE_LOOPS_H_

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "arithmetic.h"
#include "moments.h"

// The iterations of the next loop are independent, regardless of possible pointer aliasing.
#ifdef __clang__
#define SYNCBN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define SYNCBN_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace {

using syncbn::Planes;

// Rows of channels are joined to rows of about this width, so that few channels fill the vector
// units, too.
constexpr int64_t kWidth = 512;

// Number of folded rows summed in float before widening: the rounding error of a partial sum stays
// below 1e-6.
constexpr int64_t kBlock = 128;

// The number of rows joined into one folded row.
inline int64_t fold_of(int64_t channels) {
  return max_of<int64_t>(1, kWidth / max_of<int64_t>(1, channels));
}
inline int64_t width_of(int64_t channels) { return fold_of(channels) * channels; }

// Fills a folded row with one value per channel, repeated for each of its rows.
template <typename T, typename Value>
void fold(int64_t channels, T* columns, Value value) {
  for (int64_t c = 0; c < channels; ++c) columns[c] = value(c);
  for (int64_t f = 1; f < fold_of(channels); ++f)
    memcpy(columns + f * channels, columns, channels * sizeof(T));
}

// Adds the columns of each channel to total, and resets them to zero.
template <typename T>
void drain(int64_t channels, T* columns, double* total) {
  for (int64_t f = 0; f < fold_of(channels); ++f)
    for (int64_t c = 0; c < channels; ++c) total[c] += columns[f * channels + c];
  memset(columns, 0, width_of(channels) * sizeof(T));
}

// Zeroed memory, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const size_t bytes = (max_of<int64_t>(1, count) * sizeof(T) + 63) / 64 * 64;
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

constexpr int64_t kLanes = 16;

// Adds the lanes of each channel to total, and resets them to zero.
template <typename T>
void drain_lanes(int64_t channels, T* lanes, double* total) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t l = 0; l < kLanes; ++l) total[c] += lanes[c * kLanes + l];
  memset(lanes, 0, channels * kLanes * sizeof(T));
}

// Sums if the values of a channel are contiguous: add(i, position, column, s, t) adds the two terms
// of value i to s and t.
template <typename T, typename Add>
void sums_of_runs(Planes p, double* r, double* q, Add add) {
  // As many values per lane before widening as in folded rows; long runs are divided.
  const int64_t run = min_of(p.inner, kBlock * kLanes);
  const int64_t outers = max_of<int64_t>(1, kBlock * kLanes / max_of<int64_t>(1, run));
  Buffer<T> first(p.channels * kLanes), second(p.channels * kLanes);
  for (int64_t begin = 0; begin < p.inner; begin += run) {
    const int64_t end = min_of(begin + run, p.inner);
    const int64_t whole = begin + (end - begin) / kLanes * kLanes;
    int64_t added = 0;
    for (int64_t outer = p.outer - 1; outer >= 0; --outer) {
      for (int64_t c = 0; c < p.channels; ++c) {
        const int64_t base = (outer * p.channels + c) * p.inner, position = outer * p.inner;
        T* __restrict s = first.data() + c * kLanes;
        T* __restrict t = second.data() + c * kLanes;
        T a[kLanes], b[kLanes];
        memcpy(a, s, sizeof(a)), memcpy(b, t, sizeof(b));
        for (int64_t i = begin; i < whole; i += kLanes)
          for (int64_t l = 0; l < kLanes; ++l) add(base + i + l, position + i + l, c, a[l], b[l]);
        for (int64_t i = whole; i < end; ++i)
          add(base + i, position + i, c, a[i - whole], b[i - whole]);
        memcpy(s, a, sizeof(a)), memcpy(t, b, sizeof(b));
      }
      if (++added == outers || outer == 0) {
        drain_lanes(p.channels, first.data(), r), drain_lanes(p.channels, second.data(), q);
        added = 0;
      }
    }
  }
}

// Two sums per channel: terms(i, column, s, t) adds the two terms of value i to s and t; the totals
// are added to r and q (C, double).
template <typename T, typename Terms>
void channel_sums(Planes p, double* r, double* q, Terms terms) {
  if (p.inner > 1) {
    sums_of_runs<T>(p, r, q, [=](int64_t i, int64_t, int64_t c, T& s, T& t) { terms(i, c, s, t); });
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
    const int64_t stop = min_of(start + kBlock, rows);
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

// The same with weights per position: terms(i, column, weight, s, t).
template <typename T, typename Terms>
void weighted_sums(Planes p, const T* __restrict weights, double* r, double* q, Terms terms) {
  if (p.inner > 1) {
    sums_of_runs<T>(p, r, q, [=](int64_t i, int64_t position, int64_t c, T& s, T& t) {
      terms(i, c, weights[position], s, t);
    });
    return;
  }
  const int64_t channels = p.channels;
  Buffer<T> first(channels), second(channels);
  T* __restrict s = first.data();
  T* __restrict t = second.data();
  for (int64_t start = (p.outer - 1) / kBlock * kBlock; start >= 0; start -= kBlock) {
    const int64_t stop = min_of(start + kBlock, p.outer);
    int64_t row = start;
    for (; row + 4 <= stop; row += 4) {
      const T w[4] = {weights[row], weights[row + 1], weights[row + 2], weights[row + 3]};
      SYNCBN_INDEPENDENT
      for (int64_t c = 0; c < channels; ++c) {
        T a = s[c], b = t[c];
        for (int64_t k = 0; k < 4; ++k) terms((row + k) * channels + c, c, w[k], a, b);
        s[c] = a, t[c] = b;
      }
    }
    for (; row < stop; ++row) {
      const T w = weights[row];
      SYNCBN_INDEPENDENT
      for (int64_t c = 0; c < channels; ++c) terms(row * channels + c, c, w, s[c], t[c]);
    }
    for (int64_t c = 0; c < channels; ++c) r[c] += s[c], q[c] += t[c];
    memset(s, 0, channels * sizeof(T));
    memset(t, 0, channels * sizeof(T));
  }
}

// Calls body(i, column) for every value, in any order: the calls are independent.
template <typename Body>
void each_value(Planes p, Body body) {
  if (p.inner > 1) {
    for (int64_t outer = 0; outer < p.outer; ++outer)
      for (int64_t c = 0; c < p.channels; ++c) {
        const int64_t begin = (outer * p.channels + c) * p.inner;
        SYNCBN_INDEPENDENT
        for (int64_t i = begin; i < begin + p.inner; ++i) body(i, c);
      }
    return;
  }
  const int64_t width = width_of(p.channels);
  for (int64_t start = 0; start < p.size(); start += width) {
    const int64_t columns = min_of(width, p.size() - start);
    SYNCBN_INDEPENDENT
    for (int64_t c = 0; c < columns; ++c) body(start + c, c);
  }
}

// Calls body(i, column, weight) for every value, in any order.
template <typename T, typename Body>
void each_weighted_value(Planes p, const T* __restrict weights, Body body) {
  if (p.inner > 1) {
    for (int64_t outer = 0; outer < p.outer; ++outer)
      for (int64_t c = 0; c < p.channels; ++c) {
        const int64_t base = (outer * p.channels + c) * p.inner;
        const T* __restrict w = weights + outer * p.inner;
        SYNCBN_INDEPENDENT
        for (int64_t i = 0; i < p.inner; ++i) body(base + i, c, w[i]);
      }
    return;
  }
  for (int64_t row = 0; row < p.outer; ++row) {
    const T w = weights[row];
    SYNCBN_INDEPENDENT
    for (int64_t c = 0; c < p.channels; ++c) body(row * p.channels + c, c, w);
  }
}

}  // namespace

#endif  // SYNCBN_NATIVE_LOOPS_H_

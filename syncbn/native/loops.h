// Loops over all values by channel, in pieces.

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

// The number of rows, or of channels, whose sums are computed together.
constexpr int64_t kJoined = 4;

// Values are processed in pieces of at most this many, contiguous and of a few channels or rows.
inline int64_t longest_piece(Planes p) {
  return p.inner > 1 ? kBlock * kLanes : kJoined * width_of(p.channels);
}

// Calls body(i, column), with body = piece(start, count) and i the index in the piece, for every
// value, in any order, and then done(start, count).
template <typename Piece, typename Done>
void each_value(Planes p, Piece piece, Done done) {
  if (p.inner > 1) {
    for (int64_t c = 0; c < p.outer * p.channels; ++c)
      for (int64_t begin = 0; begin < p.inner; begin += longest_piece(p)) {
        const int64_t start = c * p.inner + begin,
                      count = min_of(longest_piece(p), p.inner - begin);
        const auto body = piece(start, count);
        const int64_t column = c % p.channels;
        SYNCBN_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) body(i, column);
        done(start, count);
      }
    return;
  }
  const int64_t width = width_of(p.channels);
  for (int64_t start = 0; start < p.size(); start += width) {
    const int64_t columns = min_of(width, p.size() - start);
    const auto body = piece(start, columns);
    SYNCBN_INDEPENDENT
    for (int64_t c = 0; c < columns; ++c) body(c, c);
    done(start, columns);
  }
}

// The same with body(i, column, weight).
template <typename T, typename Piece, typename Done>
void each_weighted_value(Planes p, const T* __restrict weights, Piece piece, Done done) {
  if (p.inner > 1) {
    for (int64_t c = 0; c < p.outer * p.channels; ++c)
      for (int64_t begin = 0; begin < p.inner; begin += longest_piece(p)) {
        const int64_t start = c * p.inner + begin,
                      count = min_of(longest_piece(p), p.inner - begin);
        const auto body = piece(start, count);
        const int64_t column = c % p.channels;
        const T* __restrict w = weights + c / p.channels * p.inner + begin;
        SYNCBN_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) body(i, column, w[i]);
        done(start, count);
      }
    return;
  }
  for (int64_t row = 0; row < p.outer; ++row) {
    const T w = weights[row];
    const int64_t start = row * p.channels;
    const auto body = piece(start, p.channels);
    SYNCBN_INDEPENDENT
    for (int64_t c = 0; c < p.channels; ++c) body(c, c, w);
    done(start, p.channels);
  }
}

// Calls body(i, column), or body(i, column, weight) if there are weights, for every value of the
// piece from `start` on, with i the index in the piece.
template <typename T, typename Body>
void each_of_piece(Planes p, const T* weights, int64_t start, int64_t count, Body body) {
  const int64_t channels = p.channels;
  const int64_t length = p.inner > 1 ? p.inner : weights == nullptr ? width_of(channels) : channels;
  for (int64_t base = 0; base < count;) {
    const int64_t first = start + base, part = min_of(length - first % length, count - base);
    if (p.inner > 1) {
      const int64_t c = first / p.inner % channels;
      const T* w = weights + first / p.stride() * p.inner + first % p.inner;
      if (weights == nullptr) {
        SYNCBN_INDEPENDENT
        for (int64_t i = 0; i < part; ++i) body(base + i, c);
      } else {
        SYNCBN_INDEPENDENT
        for (int64_t i = 0; i < part; ++i) body(base + i, c, w[i]);
      }
    } else if (weights == nullptr) {
      SYNCBN_INDEPENDENT
      for (int64_t c = 0; c < part; ++c) body(base + c, c);
    } else {
      const T w = weights[first / channels];
      SYNCBN_INDEPENDENT
      for (int64_t c = 0; c < part; ++c) body(base + c, c, w);
    }
    base += part;
  }
}

}  // namespace

#endif  // SYNCBN_NATIVE_LOOPS_H_

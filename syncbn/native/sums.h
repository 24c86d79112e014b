// Two sums per channel, in a fixed order of additions.
//
// Sums accumulate in T over short blocks, and in double over blocks. The order of additions is
// fixed here and independent of the processor: the number of lanes and columns does not depend on
// the width of vector units, and products are rounded before they are added (-ffp-contract=off). So
// all instruction set levels give bitwise equal results.
//
// The second pass of each direction starts where the first one ended, on data still in the cache;
// so the first pass, which sums, runs from the last block to the first.

#ifndef SYNCBN_NATIVE_SUMS_H_
#define SYNCBN_NATIVE_SUMS_H_

#include <stdint.h>
#include <string.h>

#include "arithmetic.h"
#include "loops.h"
#include "moments.h"

namespace {

// Adds the columns of each channel to total, and resets them to zero.
template <typename T>
void drain(int64_t channels, T* columns, double* total) {
  for (int64_t f = 0; f < fold_of(channels); ++f)
    for (int64_t c = 0; c < channels; ++c) total[c] += columns[f * channels + c];
  memset(columns, 0, width_of(channels) * sizeof(T));
}

// The terms that one value adds to the two sums of its channel.
template <typename T>
struct Two {
  T first, second;
};

// Adds the lanes of each channel to total, and resets them to zero.
template <typename T>
void drain_lanes(int64_t channels, T* lanes, double* total) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t l = 0; l < kLanes; ++l) total[c] += lanes[c * kLanes + l];
  memset(lanes, 0, channels * kLanes * sizeof(T));
}

// Sums if the values of a channel are contiguous: piece(start, count) returns the terms of values
// `start` to `start + count`, called with call(term, i, position, column).
template <typename T, typename Piece, typename Call>
void sums_of_runs(Planes p, double* r, double* q, Piece piece, Call call) {
  // As many values per lane before widening as in folded rows; long runs are divided.
  const int64_t run = min_of(p.inner, kBlock * kLanes);
  const int64_t outers = max_of<int64_t>(1, kBlock * kLanes / max_of<int64_t>(1, run));
  const int64_t most = min_of(p.channels, max_of<int64_t>(1, kBlock * kLanes / p.inner));
  Buffer<T> first(p.channels * kLanes), second(p.channels * kLanes);
  for (int64_t begin = 0; begin < p.inner; begin += run) {
    const int64_t length = min_of(run, p.inner - begin);
    int64_t added = 0;
    for (int64_t outer = p.outer - 1; outer >= 0; --outer) {
      for (int64_t c = 0; c < p.channels; c += most) {
        const int64_t joined = min_of(most, p.channels - c), position = outer * p.inner + begin;
        const auto term = piece((outer * p.channels + c) * p.inner + begin, joined * length);
        for (int64_t k = 0; k < joined; ++k) {
          T* __restrict s = first.data() + (c + k) * kLanes;
          T* __restrict t = second.data() + (c + k) * kLanes;
          const int64_t base = k * length, whole = length / kLanes * kLanes;
          T u[4 * kLanes], v[4 * kLanes];
          using Lanes [[gnu::vector_size(kLanes * sizeof(T))]] = T;
          Lanes a, b, next;
          memcpy(&a, s, sizeof(a)), memcpy(&b, t, sizeof(b));
          for (int64_t i = 0; i < whole;) {
            const int64_t part = min_of(4 * kLanes, whole - i);
            SYNCBN_INDEPENDENT
            for (int64_t l = 0; l < part; ++l) {
              const Two<T> two = call(term, base + i + l, position + i + l, c + k);
              u[l] = two.first, v[l] = two.second;
            }
            for (int64_t l = 0; l < part; l += kLanes) {
              memcpy(&next, u + l, sizeof(next)), a += next;
              memcpy(&next, v + l, sizeof(next)), b += next;
            }
            i += part;
          }
          memcpy(s, &a, sizeof(a)), memcpy(t, &b, sizeof(b));
          for (int64_t i = whole; i < length; ++i) {
            const Two<T> two = call(term, base + i, position + i, c + k);
            s[i - whole] += two.first, t[i - whole] += two.second;
          }
        }
      }
      if (++added == outers || outer == 0) {
        drain_lanes(p.channels, first.data(), r), drain_lanes(p.channels, second.data(), q);
        added = 0;
      }
    }
  }
}

// One value per position: call(step, i, position, column) for kJoined or one row of `width` columns
// from `position` on.
template <int rows, typename T, typename Term, typename Call>
void sums_of_rows(int64_t width, int64_t position, T* __restrict s, T* __restrict t, Term term,
                  Call call) {
  SYNCBN_INDEPENDENT
  for (int64_t c = 0; c < width; ++c) {
    T a = s[c], b = t[c];
    for (int64_t k = 0; k < rows; ++k) {
      const Two<T> two = call(term, k * width + c, position + k, c);
      a += two.first, b += two.second;
    }
    s[c] = a, t[c] = b;
  }
}

// Sums over rows of `width` columns in blocks, from the last to the first.
template <typename T, typename Piece, typename Call, typename Drain>
void sums_of_blocks(int64_t rows, int64_t width, T* __restrict s, T* __restrict t, Piece piece,
                    Call call, Drain drain_block) {
  for (int64_t start = (rows - 1) / kBlock * kBlock; start >= 0; start -= kBlock) {
    const int64_t stop = min_of(start + kBlock, rows);
    int64_t row = start;
    for (; row + kJoined <= stop; row += kJoined)
      sums_of_rows<kJoined>(width, row, s, t, piece(row * width, kJoined * width), call);
    for (; row < stop; ++row) sums_of_rows<1>(width, row, s, t, piece(row * width, width), call);
    drain_block();
  }
}

// Two sums per channel: piece(start, count) returns the terms of values `start` to
// `start + count`, as a function of the index in the piece and the column; the totals are added to
// r and q (C, double).
template <typename T, typename Piece>
void channel_sums(Planes p, double* r, double* q, Piece piece) {
  const auto call = [](const auto& term, int64_t i, int64_t, int64_t c) { return term(i, c); };
  if (p.inner > 1) return sums_of_runs<T>(p, r, q, piece, call);
  const int64_t width = width_of(p.channels), rows = width > 0 ? p.size() / width : 0;
  Buffer<T> first(width), second(width);
  T *s = first.data(), *t = second.data();
  const int64_t rest = p.size() - rows * width;
  if (rest > 0) sums_of_rows<1>(rest, rows, s, t, piece(rows * width, rest), call);
  sums_of_blocks(rows, width, s, t, piece, call,
                 [=] { drain(p.channels, s, r), drain(p.channels, t, q); });
}

// The same with weights per position.
template <typename T, typename Piece>
void weighted_sums(Planes p, const T* __restrict weights, double* r, double* q, Piece piece) {
  const auto call = [weights](const auto& term, int64_t i, int64_t position, int64_t c) {
    return term(i, c, weights[position]);
  };
  if (p.inner > 1) return sums_of_runs<T>(p, r, q, piece, call);
  const int64_t channels = p.channels;
  Buffer<T> first(channels), second(channels);
  T *s = first.data(), *t = second.data();
  sums_of_blocks(p.outer, channels, s, t, piece, call, [=] {
    for (int64_t c = 0; c < channels; ++c) r[c] += s[c], q[c] += t[c];
    memset(s, 0, channels * sizeof(T));
    memset(t, 0, channels * sizeof(T));
  });
}

}  // namespace

#endif  // SYNCBN_NATIVE_SUMS_H_

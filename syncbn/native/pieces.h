// Pieces of a tensor as values of the compute type T.
//
// float16 is widened to, and rounded from, a small buffer, by loops of its own; other values are
// used in place, bfloat16 through conversions that are short enough for the loops that use it.

#ifndef SYNCBN_NATIVE_PIECES_H_
#define SYNCBN_NATIVE_PIECES_H_

#include <stdint.h>

#include "half.h"
#include "loops.h"

namespace {

// Reads pieces of at most `longest` values.
template <typename In, typename T>
class Source {
 public:
  Source(const In* values, int64_t longest) : values_(values), buffer_(longest) {}

  // The values from `start` on, until the next call.
  const T* at(int64_t start, int64_t count) {
    widen(values_ + start, count, buffer_.data());
    return buffer_.data();
  }

 private:
  const In* values_;
  Buffer<T> buffer_;
};

template <typename T>
class Source<T, T> {
 public:
  Source(const T* values, int64_t) : values_(values) {}
  const T* at(int64_t start, int64_t) { return values_ + start; }

 private:
  const T* values_;
};

template <>
class Source<BFloat16, float> {
 public:
  struct Values {
    const BFloat16* values;
    float operator[](int64_t i) const { return static_cast<float>(values[i]); }
  };

  Source(const BFloat16* values, int64_t) : values_(values) {}
  Values at(int64_t start, int64_t) { return {values_ + start}; }

 private:
  const BFloat16* values_;
};

// Writes pieces of at most `longest` values.
template <typename Out, typename T>
class Sink {
 public:
  Sink(Out* values, int64_t longest) : values_(values), buffer_(longest) {}

  // Where to write the values from `start` on, until `store`.
  T* at(int64_t) { return buffer_.data(); }
  void store(int64_t start, int64_t count) { narrow(buffer_.data(), count, values_ + start); }

 private:
  Out* values_;
  Buffer<T> buffer_;
};

template <typename T>
class Sink<T, T> {
 public:
  Sink(T* values, int64_t) : values_(values) {}
  T* at(int64_t start) { return values_ + start; }
  void store(int64_t, int64_t) {}

 private:
  T* values_;
};

template <>
class Sink<BFloat16, float> {
 public:
  struct Value {
    BFloat16* value;
    void operator=(float rounded) const { *value = BFloat16(rounded); }
    operator float() const { return static_cast<float>(*value); }
  };
  struct Values {
    BFloat16* values;
    Value operator[](int64_t i) const { return {values + i}; }
  };

  Sink(BFloat16* values, int64_t) : values_(values) {}
  Values at(int64_t start) { return {values_ + start}; }
  void store(int64_t, int64_t) {}

 private:
  BFloat16* values_;
};

}  // namespace

#endif  // SYNCBN_NATIVE_PIECES_H_

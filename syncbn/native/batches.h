// Divides the work on a tensor into ghost batches, and into parts for threads.

#ifndef SYNCBN_NATIVE_BATCHES_H_
#define SYNCBN_NATIVE_BATCHES_H_

#include <stdint.h>
#include <stdio.h>

#include "arithmetic.h"
#include "library.h"
#include "operations.h"
#include "scratch.h"
#include "threads.h"

namespace syncbn {
namespace {

// Fewer values are not worth an additional thread.
constexpr int64_t kValuesPerThread = 1 << 16;

// Writes the shape of a tensor as text, truncated if it is long.
template <int size>
void describe(const Tensor& tensor, char (&text)[size]) {
  int end = snprintf(text, size, "(");
  for (int i = 0; i < tensor.rank() && end < size; ++i)
    end += snprintf(text + end, size - end, i > 0 ? ", %lld" : "%lld",
                    static_cast<long long>(tensor.dim(i)));
  if (end < size) snprintf(text + end, size - end, ")");
}

// The attributes of each of the four operations.
struct Layer {
  explicit Layer(Construction& construction)
      : axis(construction.integer("axis")),
        type(construction.type("T")),
        kernels(&kernels_of(type)) {}

  DataType computed() const { return type == kDouble ? kDouble : kFloat; }

  // False, with the error in `run`, if x has no such axis.
  bool planes(const Tensor& x, Run& run, Planes* p) const {
    if (axis < 0 || axis >= x.rank() || x.rank() > kMaxDims) {
      run.status.set(
          kInvalidArgument,
          "the channel axis must be one of x, which may have %d. Received: axis %d of %d", kMaxDims,
          int(axis), x.rank());
      return false;
    }
    *p = {1, x.dim(axis), 1};
    for (int i = 0; i < axis; ++i) p->outer *= x.dim(i);
    for (int i = axis + 1; i < x.rank(); ++i) p->inner *= x.dim(i);
    return true;
  }

  // The residual, or null if there is none: a vector. Sets an error in `run` if its shape is not
  // that of x.
  const void* residual(const Tensor& values, const Tensor& x, Run& run) const {
    if (values.rank() == 1) return nullptr;
    bool equal = values.rank() == x.rank();
    for (int i = 0; equal && i < x.rank(); ++i) equal = values.dim(i) == x.dim(i);
    if (equal) return values.data();
    char shapes[2][64];
    describe(values, shapes[0]), describe(x, shapes[1]);
    run.status.set(kInvalidArgument,
                   "residual must have the shape of inputs. Received: residual of shape %s, inputs "
                   "of shape %s",
                   shapes[0], shapes[1]);
    return nullptr;
  }

  // The value at `offset`; null stays null.
  const void* at(const void* values, int64_t offset) const {
    return values == nullptr ? nullptr
                             : static_cast<const char*>(values) + offset * kernels->value_size;
  }
  void* at(void* values, int64_t offset) const {
    return values == nullptr ? nullptr : static_cast<char*>(values) + offset * kernels->value_size;
  }

  int64_t axis;
  DataType type;
  const Kernels* kernels;
};

// The number of parts into which the outer axis of `p` is divided.
int64_t parts_of(Planes p) {
  int64_t parts = p.size() / kValuesPerThread;
  if (p.outer < parts) parts = p.outer;
  if (thread_count() < parts) parts = thread_count();
  return parts < 1 ? 1 : parts;
}

// Calls work(part, offset, planes) for each part.
template <typename Work>
void in_parts(Planes p, int64_t parts, const Work& work) {
  for_each_part(parts, [&](int64_t part) {
    const int64_t begin = p.outer * part / parts, end = p.outer * (part + 1) / parts;
    work(part, begin * p.stride(), p.part(end - begin));
  });
}

// Two sums per channel: add(offset, planes, r, q) adds those of one part.
class Sums {
 public:
  template <typename Add>
  Sums(Planes p, int64_t parts, const Add& add)
      : parts_(parts), length_(2 * p.channels), partial_(parts_ * length_ * sizeof(double)) {
    double* all = data();
    in_parts(p, parts_, [&](int64_t part, int64_t offset, Planes piece) {
      double* r = all + part * length_;
      add(offset, piece, r, r + p.channels);
    });
    for (int64_t part = 1; part < parts_; ++part)
      for (int64_t i = 0; i < length_; ++i) all[i] += all[part * length_ + i];
  }

  // (2, C)
  double* data() { return static_cast<double*>(partial_.data()); }

 private:
  int64_t parts_, length_;
  Scratch partial_;
};

// The batches in x: one, or several ghost batches.
class Batches {
 public:
  // `whole` is all of x; sets an error in `run` if its rows cannot be divided into these blocks.
  Batches(const Layer& layer, Planes whole, const Tensor& x, const Tensor& weights,
          const Tensor& options, Run& run)
      : layer_(layer), whole_(whole), options_(options.data<double>()) {
    const int64_t rows = x.rank() > 0 ? x.dim(0) : 0;
    count_ = at_least_one(static_cast<int64_t>(options_[3]));
    if (count_ > 1 && (layer.axis == 0 || rows % count_ != 0))
      run.status.set(kInvalidArgument, "%lld rows cannot be divided into %lld blocks",
                     static_cast<long long>(rows), static_cast<long long>(count_));
    if (weights.size() > 0 && weights.size() != whole.outer * whole.inner)
      run.status.set(kInvalidArgument,
                     "weights must have one value per position. Received: %lld of %lld",
                     static_cast<long long>(weights.size()),
                     static_cast<long long>(whole.outer * whole.inner));
    weights_ = weights.size() > 0 ? weights.data() : nullptr;
  }

  int64_t count() const { return count_; }
  Planes one() const { return whole_.part(whole_.outer / count_); }
  // The number of parts of one batch: several batches are not divided further.
  int64_t parts() const { return count_ > 1 ? 1 : parts_of(whole_); }
  double epsilon() const { return options_[0]; }
  Rectifier rectifier() const { return {options_[4], options_[5]}; }

  // Calls work(batch, offset of its first value) for each batch.
  template <typename Work>
  void each(const Work& work) const {
    if (count_ == 1) return work(0, 0);
    for_each_part(count_, [&](int64_t batch) { work(batch, batch * one().size()); });
  }

  // The weights from the position of the value at `offset`.
  const void* weights_at(int64_t offset) const {
    if (weights_ == nullptr) return nullptr;
    return static_cast<const char*>(weights_) +
           offset / at_least_one(whole_.channels) * layer_.kernels->compute_size;
  }

 private:
  static int64_t at_least_one(int64_t count) { return count > 1 ? count : 1; }

  const Layer& layer_;
  Planes whole_;
  const double* options_;
  int64_t count_ = 1;
  const void* weights_ = nullptr;
};

}  // namespace
}  // namespace syncbn

#endif  // SYNCBN_NATIVE_BATCHES_H_

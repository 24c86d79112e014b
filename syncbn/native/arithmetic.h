// The interface between operations and arithmetic: a table of functions per instruction set level.
//
// arithmetic.cc is compiled once per level; levels.cc chooses one table when the library is loaded.
// Neither depends on TensorFlow, communicators or the C++ standard library, so that no inline
// function compiled for one level can replace that of another when linking.

#ifndef SYNCBN_NATIVE_ARITHMETIC_H_
#define SYNCBN_NATIVE_ARITHMETIC_H_

#include <stdint.h>

namespace syncbn {

// The layout of values, (outer, channels, inner): any channel axis, without transposition.
struct Planes {
  int64_t outer, channels, inner;
  int64_t size() const { return outer * channels * inner; }
  // The first `count` outer indices: work is divided along the outer axis.
  Planes part(int64_t count) const { return {count, channels, inner}; }
  int64_t stride() const { return channels * inner; }
};

// y = z·slope below zero, min(z, cap) above: ReLU, ReLU6, leaky ReLU; the identity with slope 1 and
// an infinite cap.
struct Rectifier {
  double slope, cap;
  bool rectifies() const { return slope != 1 || cap <= 1.7976931348623157e308; }
};

// The functions for one type of values. T is the compute type: double for double, otherwise float.
// Moments are those of `merge`: count, means, variances and rests of the means (1, C, C, C).
struct Kernels {
  int64_t value_size, compute_size;  // bytes

  // A value near the data of each channel. Weights, here and below: of type T, one per position
  // (outer, inner), or null if all are 1.
  void (*choose_pivot)(const void* x, Planes p, const void* weights, double* pivot);

  // r += Σw(x − pivot), q += Σw(x − pivot)².
  void (*local_sums)(const void* x, Planes p, const void* weights, const double* pivot, double* r,
                     double* q);

  // r += Σg, q += Σg·(x − mean), with g the gradient of the rectifier's input: `terms` are those of
  // `normalization_terms`, used only if there is a rectifier. If a residual was added before the
  // rectifier, g is stored in `through`, which may alias the argument.
  void (*gradient_sums)(const void* g, const void* x, const void* residual, Planes p,
                        const void* weights, const double* moments, const void* terms,
                        Rectifier rectifier, double* r, double* q, void* through);

  // The wire (2, C) and the gradients of γ and β from this rank's sums (2, C) about the rounded
  // mean.
  void (*finish_gradient_sums)(const double* sums, const double* moments, int64_t channels,
                               double epsilon, const void* scale, double* wire, void* of_scale,
                               void* of_offset);

  // The coefficients of each channel, in `terms_size(channels)` bytes.
  int64_t (*terms_size)(int64_t channels);
  void (*normalization_terms)(const double* moments, int64_t channels, double epsilon,
                              const void* scale, const void* offset, void* terms);
  void (*gradient_terms)(const double* moments, int64_t channels, double epsilon, const void* scale,
                         const void* offset, const double* sums, void* terms);

  // These use the coefficients. `residual`, here and above: values like x, added before the
  // rectifier, or null. dx may alias g, which must be `through` if a residual was added.
  void (*normalize)(const void* x, const void* residual, Planes p, const void* weights,
                    const void* terms, Rectifier rectifier, void* y);
  void (*input_gradient)(const void* g, const void* x, Planes p, const void* weights,
                         const void* terms, Rectifier rectifier, void* dx);

  // Σw
  double (*total)(const void* weights, int64_t size);

  // The next moving average: now·momentum + target·(1 − momentum).
  void (*move)(const void* now, const double* target, double momentum, int64_t channels,
               void* next);

  double (*sum_of_squares)(const void* x, int64_t size);
};

struct Arithmetic {
  // The vector to send, 4C+2 numbers, and the moments from the sum of these: see moments.py.
  void (*pack)(double count, const double* pivot, const double* r, const double* q,
               int64_t channels, double* wire);
  void (*merge)(const double* wire, int64_t channels, double* moments);

  Kernels half, bfloat16, single, wide;
};

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_ARITHMETIC_H_

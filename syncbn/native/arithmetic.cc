// The arithmetic for one level of instructions: compiled once for each, with its own -march.
//
// SYNCBN_LEVEL names the table. Everything else has internal linkage, and no header of the standard
// C++ library is included: of an inline function compiled twice the linker keeps one, whichever,
// and a processor of a lower level would run the other's instructions.

#include "arithmetic.h"

#include "kernels.h"

namespace {

// The templates of kernels.h behind pointers without types.
template <typename In>
constexpr syncbn::Kernels kernels() {
  using T = typename ComputeType<In>::type;
  return {
      sizeof(In),
      sizeof(T),
      [](const void* x, Planes p, double* pivot) {
        choose_pivot(static_cast<const In*>(x), p, pivot);
      },
      [](const void* x, Planes p, const double* pivot, double* r, double* q) {
        local_sums(static_cast<const In*>(x), p, pivot, r, q);
      },
      [](const void* g, const void* x, Planes p, const double* mean, double* r, double* q) {
        gradient_sums(static_cast<const In*>(g), static_cast<const In*>(x), p, mean, r, q);
      },
      [](const double* sums, const double* moments, int64_t channels, double epsilon,
         const void* scale, double* wire, void* of_scale, void* of_offset) {
        finish_gradient_sums(sums, moments, channels, epsilon, static_cast<const T*>(scale), wire,
                             static_cast<T*>(of_scale), static_cast<T*>(of_offset));
      },
      terms_size<T>,
      [](const double* moments, int64_t channels, double epsilon, const void* scale,
         const void* offset, void* terms) {
        normalization_terms(moments, channels, epsilon, static_cast<const T*>(scale),
                            static_cast<const T*>(offset), static_cast<T*>(terms));
      },
      [](const double* moments, int64_t channels, double epsilon, const void* scale,
         const double* sums, void* terms) {
        gradient_terms(moments, channels, epsilon, static_cast<const T*>(scale), sums,
                       static_cast<T*>(terms));
      },
      [](const void* x, Planes p, const void* terms, void* y) {
        normalize(static_cast<const In*>(x), p, static_cast<const T*>(terms), static_cast<In*>(y));
      },
      [](const void* g, const void* x, Planes p, const void* terms, void* dx) {
        input_gradient(static_cast<const In*>(g), static_cast<const In*>(x), p,
                       static_cast<const T*>(terms), static_cast<In*>(dx));
      },
      [](const void* now, const double* target, double momentum, int64_t channels, void* next) {
        move(static_cast<const T*>(now), target, momentum, channels, static_cast<T*>(next));
      },
      [](const void* x, int64_t size) { return sum_of_squares(static_cast<const In*>(x), size); },
  };
}

}  // namespace

namespace syncbn {

extern const Arithmetic SYNCBN_LEVEL;
constexpr Arithmetic SYNCBN_LEVEL = {
    pack, merge, kernels<Half>(), kernels<BFloat16>(), kernels<float>(), kernels<double>()};

}  // namespace syncbn

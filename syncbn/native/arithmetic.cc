// The arithmetic for one instruction set level, compiled once per level with its -march.
//
// SYNCBN_LEVEL is the name of the table. Everything else has internal linkage, and no header of the
// C++ standard library is included: of an inline function compiled twice the linker keeps any one,
// and a processor of a lower level could execute unsupported instructions.

#include "arithmetic.h"

#include "gradients.h"
#include "kernels.h"

namespace {

// The number of an `After`.
int after(Rectifier rectifier) {
  if (!rectifier.rectifies()) return int(After::kNothing);
  const bool relu = rectifier.slope == 0 && rectifier.cap > 1.7976931348623157e308;
  return int(relu ? After::kRelu : After::kRectifier);
}

// Untyped wrappers of the templates in kernels.h.
template <typename In>
constexpr syncbn::Kernels kernels() {
  using T = typename ComputeType<In>::type;
  return {
      sizeof(In),
      sizeof(T),
      [](const void* x, Planes p, const void* weights, double* pivot) {
        choose_pivot(static_cast<const In*>(x), p, static_cast<const T*>(weights), pivot);
      },
      [](const void* x, Planes p, const void* weights, const double* pivot, double* r, double* q) {
        local_sums(static_cast<const In*>(x), p, static_cast<const T*>(weights), pivot, r, q);
      },
      [](const void* g, const void* x, const void* residual, Planes p, const void* weights,
         const double* moments, const void* terms, Rectifier rectifier, double* r, double* q,
         void* through) {
        constexpr decltype(&gradient_sums<In, After::kNothing, false>) all[3] = {
            gradient_sums<In, After::kNothing, false>, gradient_sums<In, After::kRelu, false>,
            gradient_sums<In, After::kRectifier, false>};
        const auto sums =
            residual != nullptr ? gradient_sums<In, After::kNothing, true> : all[after(rectifier)];
        sums(static_cast<const In*>(g), static_cast<const In*>(x), static_cast<const In*>(residual),
             p, static_cast<const T*>(weights), moments, static_cast<const T*>(terms), rectifier, r,
             q, static_cast<In*>(through));
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
         const void* offset, const double* sums, void* terms) {
        gradient_terms(moments, channels, epsilon, static_cast<const T*>(scale),
                       static_cast<const T*>(offset), sums, static_cast<T*>(terms));
      },
      [](const void* x, const void* residual, Planes p, const void* weights, const void* terms,
         Rectifier rectifier, void* y) {
        constexpr decltype(&normalize<In, After::kNothing, false>) all[2][3] = {
            {normalize<In, After::kNothing, false>, normalize<In, After::kRelu, false>,
             normalize<In, After::kRectifier, false>},
            {normalize<In, After::kNothing, true>, normalize<In, After::kRelu, true>,
             normalize<In, After::kRectifier, true>}};
        const auto outputs = all[residual != nullptr][after(rectifier)];
        outputs(static_cast<const In*>(x), static_cast<const In*>(residual), p,
                static_cast<const T*>(weights), static_cast<const T*>(terms), rectifier,
                static_cast<In*>(y));
      },
      [](const void* g, const void* x, Planes p, const void* weights, const void* terms,
         Rectifier rectifier, void* dx) {
        constexpr decltype(&input_gradient<In, After::kNothing>) all[3] = {
            input_gradient<In, After::kNothing>, input_gradient<In, After::kRelu>,
            input_gradient<In, After::kRectifier>};
        all[after(rectifier)](static_cast<const In*>(g), static_cast<const In*>(x), p,
                              static_cast<const T*>(weights), static_cast<const T*>(terms),
                              rectifier, static_cast<In*>(dx));
      },
      [](const void* weights, int64_t size) { return total(static_cast<const T*>(weights), size); },
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

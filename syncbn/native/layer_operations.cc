// The layer as four CPU operations, with an all-reduce of any communicator in between.
//
// `weights` has one number of the compute type per position, or is empty: all weights are 1.
// `options` are epsilon, momentum, whether to correct the variance (Bessel), the number of blocks,
// and slope and cap of the rectifier after the normalization. Each block is an equal part of the
// outermost axis with its own statistics (ghost batches); wires and moments of blocks are
// concatenated.
//
// `residual` has values like x, added to the normalized ones before the rectifier, or is an empty
// vector.
//
// Work is divided by the number of threads only, and partial sums are added in order, so results
// are reproducible bit for bit.

#include "arithmetic.h"
#include "batches.h"
#include "library.h"
#include "operations.h"
#include "scratch.h"

namespace syncbn {
namespace {

// x, weights, options → wire
void local_sums(const Layer& layer, Run& run) {
  const Tensor x = run.input(0), weights = run.input(1), options = run.input(2);
  Planes p;
  if (!run.ok() || !layer.planes(x, run, &p)) return;
  const Batches batches(layer, p, x, weights, options, run);
  const int64_t length = 4 * p.channels + 2;
  const Tensor wire =
      run.output(0, kDouble, sizeof(double), Shape::vector(batches.count() * length));
  if (!run.ok()) return;

  const void* values = x.data();
  double* packed = wire.data<double>();
  const Planes one = batches.one();
  const int64_t positions = one.outer * one.inner;
  batches.each([&](int64_t batch, int64_t start) {
    Scratch scratch(p.channels * sizeof(double));
    double* pivot = static_cast<double*>(scratch.data());
    const void* counts = batches.weights_at(start);
    layer.kernels->choose_pivot(layer.at(values, start), one, counts, pivot);
    Sums sums(one, batches.parts(), [&](int64_t offset, Planes piece, double* r, double* q) {
      layer.kernels->local_sums(layer.at(values, start + offset), piece,
                                batches.weights_at(start + offset), pivot, r, q);
    });
    const double count = counts == nullptr ? positions : layer.kernels->total(counts, positions);
    chosen_arithmetic().pack(count, pivot, sums.data(), sums.data() + p.channels, p.channels,
                             packed + batch * length);
  });
}

// The next moving mean and variance from the moments of the global batch.
void move_statistics(const Kernels& kernels, const double* moments, int64_t channels,
                     const double* option, const Tensor& mean_now, const Tensor& variance_now,
                     const Tensor& mean_next, const Tensor& variance_next) {
  const double count = moments[0], *mean = moments + 1, *variance = mean + channels;
  const double momentum = count > 0 ? option[1] : 1.0;
  kernels.move(mean_now.data(), mean, momentum, channels, mean_next.data());
  Scratch scratch(channels * sizeof(double));
  double* target = static_cast<double*>(scratch.data());
  const double correction = option[2] != 0 && count > 1 ? count / (count - 1) : 1.0;
  for (int64_t c = 0; c < channels; ++c) target[c] = variance[c] * correction;
  kernels.move(variance_now.data(), target, momentum, channels, variance_next.data());
}

// x, weights, wire, scale, offset, moving mean, moving variance, options, residual → y, moments,
// next mean, next variance (of the first batch)
void normalize(const Layer& layer, Run& run) {
  const Tensor x = run.input(0), weights = run.input(1), wire = run.input(2), scale = run.input(3),
               offset = run.input(4), mean_now = run.input(5), variance_now = run.input(6),
               options = run.input(7), residual = run.input(8);
  Planes p;
  if (!run.ok() || !layer.planes(x, run, &p)) return;
  const Batches batches(layer, p, x, weights, options, run);
  const void* added = layer.residual(residual, x, run);
  const Kernels& kernels = *layer.kernels;
  const Shape by_channel = Shape::vector(p.channels);
  const int64_t length = 3 * p.channels + 1;
  const Tensor y = run.output(0, layer.type, kernels.value_size, Shape::of(x)),
               moments =
                   run.output(1, kDouble, sizeof(double), Shape::vector(batches.count() * length)),
               mean_next = run.output(2, layer.computed(), kernels.compute_size, by_channel),
               variance_next = run.output(3, layer.computed(), kernels.compute_size, by_channel);
  if (!run.ok()) return;

  double* all = moments.data<double>();
  const double* sums = wire.data<double>();
  for (int64_t batch = 0; batch < batches.count(); ++batch)
    chosen_arithmetic().merge(sums + batch * (4 * p.channels + 2), p.channels,
                              all + batch * length);
  move_statistics(kernels, all, p.channels, options.data<double>(), mean_now, variance_now,
                  mean_next, variance_next);

  const void* from = x.data();
  void* to = y.data();
  const Planes one = batches.one();
  batches.each([&](int64_t batch, int64_t start) {
    Scratch terms(kernels.terms_size(p.channels));
    kernels.normalization_terms(all + batch * length, p.channels, batches.epsilon(), scale.data(),
                                offset.data(), terms.data());
    in_parts(one, batches.parts(), [&](int64_t, int64_t offset, Planes piece) {
      kernels.normalize(layer.at(from, start + offset), layer.at(added, start + offset), piece,
                        batches.weights_at(start + offset), terms.data(), batches.rectifier(),
                        layer.at(to, start + offset));
    });
  });
}

// Sums the vectors (C) of all batches, of type T.
template <typename T>
void add_up(const void* parts, int64_t count, int64_t channels, void* sum) {
  const T* values = static_cast<const T*>(parts);
  T* total = static_cast<T*>(sum);
  for (int64_t c = 0; c < channels; ++c) {
    double all = 0;
    for (int64_t part = 0; part < count; ++part) all += values[part * channels + c];
    total[c] = static_cast<T>(all);
  }
}

// gradient, x, weights, moments, scale, offset, options, residual → wire, gradients of γ and β, and
// of the residual (an empty vector without one)
void gradient_sums(const Layer& layer, Run& run) {
  const Tensor x = run.input(1), weights = run.input(2), moments = run.input(3),
               scale = run.input(4), shift = run.input(5), options = run.input(6),
               residual = run.input(7);
  Planes p;
  if (!run.ok() || !layer.planes(x, run, &p)) return;
  const Batches batches(layer, p, x, weights, options, run);
  const Kernels& kernels = *layer.kernels;
  const Shape by_channel = Shape::vector(p.channels);
  const Tensor wire = run.output(0, kDouble, sizeof(double),
                                 Shape::vector(batches.count() * 2 * p.channels)),
               of_scale = run.output(1, layer.computed(), kernels.compute_size, by_channel),
               of_offset = run.output(2, layer.computed(), kernels.compute_size, by_channel);
  const void* added = layer.residual(residual, x, run);
  const Tensor of_residual = residual.rank() == 1
                                 ? run.output(3, layer.type, kernels.value_size, Shape::vector(0))
                                 : run.output_in_place_of(0, 3, Shape::of(x));
  const Tensor gradient = run.input(0);
  if (!run.ok()) return;

  const void *g = gradient.data(), *values = x.data();
  void* through = added == nullptr ? nullptr : of_residual.data();
  const double* all_moments = moments.data<double>();
  const Planes one = batches.one();
  const int64_t vector = p.channels * kernels.compute_size;
  Scratch scales(batches.count() * vector), offsets(batches.count() * vector);
  batches.each([&](int64_t batch, int64_t start) {
    const double* of_batch = all_moments + batch * (3 * p.channels + 1);
    const bool rectifies = added != nullptr || batches.rectifier().rectifies();
    Scratch terms(rectifies ? kernels.terms_size(p.channels) : 0);
    if (rectifies)
      kernels.normalization_terms(of_batch, p.channels, batches.epsilon(), scale.data(),
                                  shift.data(), terms.data());
    Sums sums(one, batches.parts(), [&](int64_t offset, Planes piece, double* r, double* q) {
      kernels.gradient_sums(layer.at(g, start + offset), layer.at(values, start + offset),
                            layer.at(added, start + offset), piece,
                            batches.weights_at(start + offset), of_batch, terms.data(),
                            batches.rectifier(), r, q, layer.at(through, start + offset));
    });
    kernels.finish_gradient_sums(sums.data(), of_batch, p.channels, batches.epsilon(), scale.data(),
                                 wire.data<double>() + batch * 2 * p.channels,
                                 static_cast<char*>(scales.data()) + batch * vector,
                                 static_cast<char*>(offsets.data()) + batch * vector);
  });
  const auto sum = layer.computed() == kDouble ? add_up<double> : add_up<float>;
  sum(scales.data(), batches.count(), p.channels, of_scale.data());
  sum(offsets.data(), batches.count(), p.channels, of_offset.data());
}

// gradient, x, weights, moments, scale, offset, wire, options → gradient of x
void input_gradient(const Layer& layer, Run& run) {
  const Tensor x = run.input(1), weights = run.input(2), moments = run.input(3),
               scale = run.input(4), shift = run.input(5), wire = run.input(6),
               options = run.input(7);
  Planes p;
  if (!run.ok() || !layer.planes(x, run, &p)) return;
  const Batches batches(layer, p, x, weights, options, run);
  // In the memory of the gradient if possible: one tensor fewer to allocate and to stream.
  const Tensor output = run.output_in_place_of(0, 0, Shape::of(x));
  const Tensor gradient = run.input(0);
  if (!run.ok()) return;

  const Kernels& kernels = *layer.kernels;
  const void *g = gradient.data(), *values = x.data();
  void* dx = output.data();
  const Planes one = batches.one();
  batches.each([&](int64_t batch, int64_t start) {
    Scratch terms(kernels.terms_size(p.channels));
    kernels.gradient_terms(moments.data<double>() + batch * (3 * p.channels + 1), p.channels,
                           batches.epsilon(), scale.data(), shift.data(),
                           wire.data<double>() + batch * 2 * p.channels, terms.data());
    in_parts(one, batches.parts(), [&](int64_t, int64_t offset, Planes piece) {
      kernels.input_gradient(layer.at(g, start + offset), layer.at(values, start + offset), piece,
                             batches.weights_at(start + offset), terms.data(), batches.rectifier(),
                             layer.at(dx, start + offset));
    });
  });
}

}  // namespace

// Shapes of small outputs depend on C at run time; Python sets them if a graph needs them.
void register_layer() {
  const char* type = "T: {half, bfloat16, float, double}";
  const char* compute = "Compute: {float, double}";
  register_operation(define<Layer, local_sums>("SyncbnLocalSums", {type, compute, "axis: int"},
                                               {"x: T", "weights: Compute", "options: double"},
                                               {"wire: double"}, shapes<kUnknown>));
  register_operation(define<Layer, normalize>(
      "SyncbnNormalize", {type, compute, "axis: int"},
      {"x: T", "weights: Compute", "wire: double", "scale: Compute", "offset: Compute",
       "moving_mean: Compute", "moving_variance: Compute", "options: double", "residual: T"},
      {"y: T", "moments: double", "next_mean: Compute", "next_variance: Compute"},
      shapes<0, kUnknown, 5, 6>));
  register_operation(define<Layer, gradient_sums>(
      "SyncbnGradientSums", {type, compute, "axis: int"},
      {"gradient: T", "x: T", "weights: Compute", "moments: double", "scale: Compute",
       "offset: Compute", "options: double", "residual: T"},
      {"wire: double", "towards_scale: Compute", "towards_offset: Compute", "towards_residual: T"},
      shapes<kUnknown, 4, 4, 7>));
  register_operation(define<Layer, input_gradient>(
      "SyncbnInputGradient", {type, compute, "axis: int"},
      {"gradient: T", "x: T", "weights: Compute", "moments: double", "scale: Compute",
       "offset: Compute", "wire: double", "options: double"},
      {"towards_x: T"}, shapes<1>));
}

}  // namespace syncbn

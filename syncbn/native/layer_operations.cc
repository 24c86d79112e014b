// The layer as four operations on the CPU, with any communicator's sums between them.
//
// Work is cut by the number of threads alone and partial sums are added in order, so results repeat
// bit by bit.

#include <stdlib.h>

#include "arithmetic.h"
#include "library.h"
#include "operations.h"
#include "threads.h"

namespace syncbn {
namespace {

// Below so many values a thread costs more than it saves.
constexpr int64_t kValuesPerThread = 1 << 16;

// Memory for one run.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(calloc(bytes > 0 ? bytes : 1, 1)) {
    if (memory_ == nullptr) abort();
  }
  ~Scratch() { free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() { return memory_; }

 private:
  void* memory_;
};

// What each of the four keeps.
struct Layer {
  explicit Layer(Construction& construction)
      : axis(construction.integer("axis")),
        type(construction.type("T")),
        kernels(&kernels_of(type)) {}

  DataType computed() const { return type == kDouble ? kDouble : kFloat; }

  // False, with the error in `run`, where x has no such axis.
  bool planes(const Tensor& x, Run& run, Planes* p) const {
    if (axis < 0 || axis >= x.rank() || x.rank() > kMostDims) {
      run.status.set(
          kInvalidArgument,
          "the channel axis must be one of x, which may have %d. Received: axis %d of %d",
          kMostDims, int(axis), x.rank());
      return false;
    }
    *p = {1, x.dim(axis), 1};
    for (int i = 0; i < axis; ++i) p->outer *= x.dim(i);
    for (int i = axis + 1; i < x.rank(); ++i) p->inner *= x.dim(i);
    return true;
  }

  const void* at(const void* values, int64_t offset) const {
    return static_cast<const char*>(values) + offset * kernels->value_size;
  }
  void* at(void* values, int64_t offset) const {
    return static_cast<char*>(values) + offset * kernels->value_size;
  }

  int64_t axis;
  DataType type;
  const Kernels* kernels;
};

// Into how many parts the outer positions of `p` are cut.
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

// Two sums by channel: sums(offset, planes, r, q) adds those of one part.
class Sums {
 public:
  template <typename Add>
  Sums(Planes p, const Add& add)
      : parts_(parts_of(p)), length_(2 * p.channels), partial_(parts_ * length_ * sizeof(double)) {
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

// x → wire
void local_sums(const Layer& layer, Run& run) {
  const Tensor x = run.input(0);
  Planes p;
  if (!run.ok() || !layer.planes(x, run, &p)) return;
  const Tensor wire = run.output(0, kDouble, sizeof(double), Shape::vector(4 * p.channels + 2));
  if (!run.ok()) return;

  const void* values = x.data();
  Scratch scratch(p.channels * sizeof(double));
  double* pivot = static_cast<double*>(scratch.data());
  layer.kernels->choose_pivot(values, p, pivot);
  Sums sums(p, [&](int64_t offset, Planes piece, double* r, double* q) {
    layer.kernels->local_sums(layer.at(values, offset), piece, pivot, r, q);
  });
  chosen_arithmetic().pack(p.outer * p.inner, pivot, sums.data(), sums.data() + p.channels,
                           p.channels, wire.data<double>());
}

// x, wire, scale, offset, moving mean, moving variance, options → y, moments, next mean, next
// variance
void normalize(const Layer& layer, Run& run) {
  const Tensor x = run.input(0), wire = run.input(1), scale = run.input(2), offset = run.input(3),
               mean_now = run.input(4), variance_now = run.input(5), options = run.input(6);
  Planes p;
  if (!run.ok() || !layer.planes(x, run, &p)) return;
  const Kernels& kernels = *layer.kernels;
  const Shape by_channel = Shape::vector(p.channels);
  const Tensor y = run.output(0, layer.type, kernels.value_size, Shape::of(x)),
               moments = run.output(1, kDouble, sizeof(double), Shape::vector(3 * p.channels + 1)),
               mean_next = run.output(2, layer.computed(), kernels.compute_size, by_channel),
               variance_next = run.output(3, layer.computed(), kernels.compute_size, by_channel);
  if (!run.ok()) return;

  const double* option = options.data<double>();
  const double epsilon = option[0], momentum = option[1];
  const bool bessel_correction = option[2] != 0;
  double* merged = moments.data<double>();
  chosen_arithmetic().merge(wire.data<double>(), p.channels, merged);
  const double count = merged[0], *mean = merged + 1, *variance = mean + p.channels;
  const double kept = count > 0 ? momentum : 1.0;
  kernels.move(mean_now.data(), mean, kept, p.channels, mean_next.data());
  Scratch scratch(p.channels * sizeof(double));
  double* target = static_cast<double*>(scratch.data());
  const double correction = bessel_correction && count > 1 ? count / (count - 1) : 1.0;
  for (int64_t c = 0; c < p.channels; ++c) target[c] = variance[c] * correction;
  kernels.move(variance_now.data(), target, kept, p.channels, variance_next.data());

  Scratch terms(kernels.terms_size(p.channels));
  kernels.normalization_terms(merged, p.channels, epsilon, scale.data(), offset.data(),
                              terms.data());
  const void* from = x.data();
  void* to = y.data();
  in_parts(p, parts_of(p), [&](int64_t, int64_t start, Planes piece) {
    kernels.normalize(layer.at(from, start), piece, terms.data(), layer.at(to, start));
  });
}

// gradient, x, moments, scale, options → wire, gradients of γ and β
void gradient_sums(const Layer& layer, Run& run) {
  const Tensor gradient = run.input(0), x = run.input(1), moments = run.input(2),
               scale = run.input(3), options = run.input(4);
  Planes p;
  if (!run.ok() || !layer.planes(x, run, &p)) return;
  const Kernels& kernels = *layer.kernels;
  const Shape by_channel = Shape::vector(p.channels);
  const Tensor wire = run.output(0, kDouble, sizeof(double), Shape::vector(2 * p.channels)),
               of_scale = run.output(1, layer.computed(), kernels.compute_size, by_channel),
               of_offset = run.output(2, layer.computed(), kernels.compute_size, by_channel);
  if (!run.ok()) return;

  const void *g = gradient.data(), *values = x.data();
  const double* known = moments.data<double>();
  Sums sums(p, [&](int64_t offset, Planes piece, double* r, double* q) {
    kernels.gradient_sums(layer.at(g, offset), layer.at(values, offset), piece, known + 1, r, q);
  });
  kernels.finish_gradient_sums(sums.data(), known, p.channels, options.data<double>()[0],
                               scale.data(), wire.data<double>(), of_scale.data(),
                               of_offset.data());
}

// gradient, x, moments, scale, wire, options → gradient of x
void input_gradient(const Layer& layer, Run& run) {
  const Tensor x = run.input(1), moments = run.input(2), scale = run.input(3), wire = run.input(4),
               options = run.input(5);
  Planes p;
  if (!run.ok() || !layer.planes(x, run, &p)) return;
  // In the memory of the gradient where possible: one stream less, and one tensor less.
  const Tensor output = run.output_in_place_of(0, Shape::of(x));
  const Tensor gradient = run.input(0);
  if (!run.ok()) return;

  const Kernels& kernels = *layer.kernels;
  Scratch terms(kernels.terms_size(p.channels));
  kernels.gradient_terms(moments.data<double>(), p.channels, options.data<double>()[0],
                         scale.data(), wire.data<double>(), terms.data());
  const void *g = gradient.data(), *values = x.data();
  void* dx = output.data();
  in_parts(p, parts_of(p), [&](int64_t, int64_t start, Planes piece) {
    kernels.input_gradient(layer.at(g, start), layer.at(values, start), piece, terms.data(),
                           layer.at(dx, start));
  });
}

}  // namespace

// Shapes of small outputs follow from C at run time; Python sets them where graphs need them.
void register_layer() {
  register_operation(define<Layer, local_sums>("SyncbnLocalSums",
                                               {"T: {half, bfloat16, float, double}", "axis: int"},
                                               {"x: T"}, {"wire: double"}, shapes<kUnknown>));
  register_operation(define<Layer, normalize>(
      "SyncbnNormalize",
      {"T: {half, bfloat16, float, double}", "Compute: {float, double}", "axis: int"},
      {"x: T", "wire: double", "scale: Compute", "offset: Compute", "moving_mean: Compute",
       "moving_variance: Compute", "options: double"},
      {"y: T", "moments: double", "next_mean: Compute", "next_variance: Compute"},
      shapes<0, kUnknown, 4, 5>));
  register_operation(define<Layer, gradient_sums>(
      "SyncbnGradientSums",
      {"T: {half, bfloat16, float, double}", "Compute: {float, double}", "axis: int"},
      {"gradient: T", "x: T", "moments: double", "scale: Compute", "options: double"},
      {"wire: double", "towards_scale: Compute", "towards_offset: Compute"},
      shapes<kUnknown, 3, 3>));
  register_operation(define<Layer, input_gradient>(
      "SyncbnInputGradient",
      {"T: {half, bfloat16, float, double}", "Compute: {float, double}", "axis: int"},
      {"gradient: T", "x: T", "moments: double", "scale: Compute", "wire: double",
       "options: double"},
      {"towards_x: T"}, shapes<1>));
}

}  // namespace syncbn

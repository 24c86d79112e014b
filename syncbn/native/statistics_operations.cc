// Operations on a few numbers per channel: sums over ghost batches, the corrections and statistics
// of batch renormalization, and the zero-debiased moving mean.

#include <stdint.h>

#include "arithmetic.h"
#include "library.h"
#include "operations.h"
#include "scratch.h"

namespace syncbn {
namespace {

struct BlockSums {
  explicit BlockSums(Construction& construction) : channels(construction.integer("channels")) {}

  int64_t channels;
};

// moments of all blocks → number of non-empty blocks, and sums of their means, variances and counts
void block_sums(const BlockSums& state, Run& run) {
  const Tensor moments = run.input(0);
  const int64_t channels = state.channels, length = 3 * channels + 1;
  const Tensor sums = run.output(0, kDouble, sizeof(double), Shape::vector(4 * channels));
  if (!run.ok()) return;
  double* total = sums.data<double>();
  for (int64_t i = 0; i < 4 * channels; ++i) total[i] = 0;
  for (int64_t block = 0; block < moments.size() / length; ++block) {
    const double* block_moments = moments.data<double>() + block * length;
    if (!(block_moments[0] > 0)) continue;
    for (int64_t c = 0; c < channels; ++c) {
      total[c] += 1;
      total[channels + c] += block_moments[1 + c];
      total[2 * channels + c] += block_moments[1 + channels + c];
      total[3 * channels + c] += block_moments[0];
    }
  }
}

struct Renorm {
  explicit Renorm(Construction& construction) : type(construction.type("Compute")) {}

  DataType type;
};

// `renorm_correction` and `update` of moving_statistics.py.
template <typename T>
void renorm_of(const double* moments, int64_t channels, const double* option,
               const void* const* now, void* const* next) {
  const T *renorm_mean = static_cast<const T*>(now[0]),
          *renorm_stddev = static_cast<const T*>(now[1]),
          *moving_stddev = static_cast<const T*>(now[2]);
  T* to[6];
  for (int i = 0; i < 6; ++i) to[i] = static_cast<T*>(next[i]);
  const double epsilon = option[0], count = moments[0];
  const double momentum = count > 0 ? option[1] : 1.0, tracking = count > 0 ? option[3] : 1.0;
  const double correction = option[2] != 0 && count > 1 ? count / (count - 1) : 1.0;
  const double r_min = option[4], r_max = option[5], d_max = option[6];
  const double min_stddev = __builtin_sqrt(epsilon);
  const auto moved = [](T from, double target, double weight) {
    return static_cast<T>(from * weight + target * (1 - weight));
  };
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = moments[1 + c], variance = moments[1 + channels + c];
    // Early in training the moving standard deviation may be near zero.
    const double tracked = renorm_stddev[c] > min_stddev ? renorm_stddev[c] : min_stddev;
    double r = __builtin_sqrt(variance + epsilon) / tracked, d = (mean - renorm_mean[c]) / tracked;
    r = r < r_min ? r_min : r;
    r = r > r_max ? r_max : r;
    d = d < -d_max ? -d_max : d > d_max ? d_max : d;
    const double stddev = __builtin_sqrt(variance * correction + epsilon);
    const T after = moved(moving_stddev[c], stddev, momentum);
    const T square = static_cast<T>(after * after - static_cast<T>(epsilon));
    to[0][c] = static_cast<T>(r);
    to[1][c] = static_cast<T>(d);
    to[2][c] = moved(renorm_mean[c], mean, tracking);
    to[3][c] = moved(renorm_stddev[c], stddev, tracking);
    to[4][c] = after;
    to[5][c] = square > 0 ? square : T(0);
  }
}

// wire, renorm mean, renorm stddev, moving stddev, options (epsilon, momentum, whether to correct
// the variance, renorm momentum, rmin, rmax, dmax) → r, d, next renorm mean, next renorm stddev,
// next moving stddev, next moving variance
void renorm(const Renorm& state, Run& run) {
  const Tensor wire = run.input(0), mean = run.input(1), stddev = run.input(2),
               moving = run.input(3), options = run.input(4);
  if (!run.ok()) return;
  const int64_t channels = mean.size();
  const int64_t size = state.type == kDouble ? sizeof(double) : sizeof(float);
  const Shape by_channel = Shape::vector(channels);
  Tensor outputs[6] = {
      run.output(0, state.type, size, by_channel), run.output(1, state.type, size, by_channel),
      run.output(2, state.type, size, by_channel), run.output(3, state.type, size, by_channel),
      run.output(4, state.type, size, by_channel), run.output(5, state.type, size, by_channel)};
  if (!run.ok()) return;
  Scratch scratch((3 * channels + 1) * sizeof(double));
  double* moments = static_cast<double*>(scratch.data());
  chosen_arithmetic().merge(wire.data<double>(), channels, moments);
  const void* now[3] = {mean.data(), stddev.data(), moving.data()};
  void* next[6];
  for (int i = 0; i < 6; ++i) next[i] = outputs[i].data();
  (state.type == kDouble ? renorm_of<double> : renorm_of<float>)(moments, channels,
                                                                 options.data<double>(), now, next);
}

struct ZeroDebias {
  explicit ZeroDebias(Construction& construction) : type(construction.type("Compute")) {}

  DataType type;
};

// base^exponent for a whole number.
double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

// `zero_debiased_update` of moving_statistics.py.
template <typename T>
void zero_debias_of(const Tensor& count, const double* mean, double momentum, int64_t channels,
                    const void* const* now, void* const* next) {
  const T *moving = static_cast<const T*>(now[0]), *biased = static_cast<const T*>(now[1]),
          *steps = static_cast<const T*>(now[2]);
  T *next_moving = static_cast<T*>(next[0]), *next_biased = static_cast<T*>(next[1]),
    *next_steps = static_cast<T*>(next[2]);
  double step = -1, weight = 1;  // usually the same for all channels
  for (int64_t c = 0; c < channels; ++c) {
    const bool counted = count.data<double>()[count.size() > 1 ? c : 0] > 0;
    next_biased[c] =
        counted ? static_cast<T>(biased[c] * momentum + mean[c] * (1 - momentum)) : biased[c];
    next_steps[c] = steps[c] + (counted ? T(1) : T(0));
    if (next_steps[c] != step) {
      step = next_steps[c];
      weight = 1 - power(momentum, static_cast<int64_t>(step));
    }
    const T debiased = weight > 0 ? static_cast<T>(next_biased[c] / weight) : T(0);
    next_moving[c] = counted ? debiased : moving[c];
  }
}

// count (1 or C), mean, moving mean, biased mean, step, momentum → the next three
void zero_debias(const ZeroDebias& state, Run& run) {
  const Tensor count = run.input(0), mean = run.input(1), moving = run.input(2),
               biased = run.input(3), step = run.input(4), momentum = run.input(5);
  if (!run.ok()) return;
  const int64_t channels = moving.size();
  if (mean.size() != channels || biased.size() != channels || step.size() != channels ||
      (count.size() != 1 && count.size() != channels)) {
    run.status.set(kInvalidArgument, "all statistics must have %lld channels",
                   static_cast<long long>(channels));
    return;
  }
  const int64_t size = state.type == kDouble ? sizeof(double) : sizeof(float);
  const Shape by_channel = Shape::vector(channels);
  Tensor outputs[3] = {run.output(0, state.type, size, by_channel),
                       run.output(1, state.type, size, by_channel),
                       run.output(2, state.type, size, by_channel)};
  if (!run.ok()) return;
  const void* now[3] = {moving.data(), biased.data(), step.data()};
  void* next[3] = {outputs[0].data(), outputs[1].data(), outputs[2].data()};
  (state.type == kDouble ? zero_debias_of<double>
                         : zero_debias_of<float>)(count, mean.data<double>(),
                                                  momentum.data<double>()[0], channels, now, next);
}

}  // namespace

void register_statistics() {
  const char* compute = "Compute: {float, double}";
  register_operation(define<BlockSums, block_sums>("SyncbnBlockSums", {"channels: int"},
                                                   {"moments: double"}, {"sums: double"},
                                                   shapes<kUnknown>));
  register_operation(define<Renorm, renorm>(
      "SyncbnRenorm", {compute},
      {"wire: double", "renorm_mean: Compute", "renorm_stddev: Compute", "moving_stddev: Compute",
       "options: double"},
      {"r: Compute", "d: Compute", "next_renorm_mean: Compute", "next_renorm_stddev: Compute",
       "next_moving_stddev: Compute", "next_variance: Compute"},
      shapes<1, 1, 1, 1, 1, 1>));
  register_operation(define<ZeroDebias, zero_debias>(
      "SyncbnZeroDebias", {compute},
      {"count: double", "mean: double", "moving_mean: Compute", "biased: Compute", "step: Compute",
       "momentum: double"},
      {"next_mean: Compute", "next_biased: Compute", "next_step: Compute"}, shapes<2, 3, 4>));
}

}  // namespace syncbn

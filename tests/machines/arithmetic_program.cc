// The arithmetic of the kernels without TensorFlow: `arithmetic_program [LEVEL] < IN > OUT`.
//
// IN: seven int64 (type: 0 half, 1 bfloat16, 2 float, 3 double; outer, channels, inner; bytes of a
// value and of what is computed in; 1 for weights, a residual and a leaky ReLU), then x, dy, gamma,
// beta, the moving mean and variance, and weights and the residual if there are. OUT: the wire
// forward, moments, next mean and variance, y, the wire backward, the gradients of gamma and beta,
// dx, the gradient before the activation. All as for one rank, with epsilon 1e-3 and momentum 0.9.
// The level used goes to standard error.

#include <stdint.h>
#include <stdio.h>

#include <vector>

#include "levels.h"

using syncbn::Kernels;
using syncbn::Planes;
using syncbn::Rectifier;
using Bytes = std::vector<char>;

namespace {

constexpr Rectifier kNone{1.0, __builtin_inf()}, kLeaky{0.2, __builtin_inf()};
constexpr double kEpsilon = 1e-3, kMomentum = 0.9;

Bytes read(int64_t size) {
  Bytes bytes(size);
  if (fread(bytes.data(), 1, bytes.size(), stdin) != bytes.size()) throw "the input is too short";
  return bytes;
}

void write(const void* data, int64_t size) { fwrite(data, 1, size, stdout); }
void write(const Bytes& bytes) { write(bytes.data(), bytes.size()); }
void write(const std::vector<double>& v) { write(v.data(), v.size() * sizeof(double)); }

void run(const syncbn::Arithmetic& arithmetic) {
  int64_t header[7];
  const Bytes raw = read(sizeof(header));
  __builtin_memcpy(header, raw.data(), sizeof(header));
  const Kernels* all[] = {&arithmetic.half, &arithmetic.bfloat16, &arithmetic.single,
                          &arithmetic.wide};
  const Kernels& kernels = *all[header[0]];
  const Planes p{header[1], header[2], header[3]};
  if (kernels.value_size != header[4] || kernels.compute_size != header[5]) throw "other sizes";
  const int64_t channels = p.channels, by_channel = channels * kernels.compute_size;
  const Bytes x = read(p.size() * kernels.value_size), dy = read(p.size() * kernels.value_size);
  const Bytes gamma = read(by_channel), beta = read(by_channel);
  const Bytes mean_now = read(by_channel), variance_now = read(by_channel);
  const bool special = header[6] != 0;
  const int64_t positions = p.outer * p.inner;
  const Bytes counts = read(special ? positions * kernels.compute_size : 0);
  const Bytes added = read(special ? p.size() * kernels.value_size : 0);
  const void* residual = special ? added.data() : nullptr;
  const void* weights = special ? counts.data() : nullptr;
  const Rectifier rectifier = special ? kLeaky : kNone;

  std::vector<double> pivot(channels), sums(2 * channels), wire(4 * channels + 2);
  kernels.choose_pivot(x.data(), p, weights, pivot.data());
  kernels.local_sums(x.data(), p, weights, pivot.data(), sums.data(), sums.data() + channels);
  arithmetic.pack(special ? kernels.total(weights, positions) : double(positions), pivot.data(),
                  sums.data(), sums.data() + channels, channels, wire.data());
  write(wire);
  std::vector<double> moments(3 * channels + 1);
  arithmetic.merge(wire.data(), channels, moments.data());
  write(moments);
  Bytes next(by_channel);
  kernels.move(mean_now.data(), &moments[1], kMomentum, channels, next.data());
  write(next);
  kernels.move(variance_now.data(), &moments[1 + channels], kMomentum, channels, next.data());
  write(next);
  Bytes terms(kernels.terms_size(channels)), y(x.size());
  kernels.normalization_terms(moments.data(), channels, kEpsilon, gamma.data(), beta.data(),
                              terms.data());
  kernels.normalize(x.data(), residual, p, weights, terms.data(), rectifier, y.data());
  write(y);

  std::vector<double> gradients(2 * channels), backward(2 * channels);
  Bytes of_gamma(by_channel), of_beta(by_channel), dx(x.size());
  Bytes through = dy;  // also the gradient of the residual
  kernels.gradient_sums(dy.data(), x.data(), residual, p, weights, moments.data(), terms.data(),
                        rectifier, gradients.data(), gradients.data() + channels, through.data());
  kernels.finish_gradient_sums(gradients.data(), moments.data(), channels, kEpsilon, gamma.data(),
                               backward.data(), of_gamma.data(), of_beta.data());
  write(backward);
  write(of_gamma);
  write(of_beta);
  kernels.gradient_terms(moments.data(), channels, kEpsilon, gamma.data(), beta.data(),
                         backward.data(), terms.data());
  kernels.input_gradient(through.data(), x.data(), p, weights, terms.data(), kNone, dx.data());
  write(dx);
  write(through);
}

}  // namespace

int main(int count, char** arguments) {
  char message[256];
  const syncbn::Level* level =
      syncbn::choose_level(count > 1 ? arguments[1] : nullptr, message, sizeof(message));
  if (level == nullptr) {
    fprintf(stderr, "%s\n", message);
    return 2;
  }
  fprintf(stderr, "%s\n", level->name);
  try {
    run(*level->arithmetic);
  } catch (const char* error) {
    fprintf(stderr, "%s\n", error);
    return 1;
  }
  return 0;
}

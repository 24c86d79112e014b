// Low-overhead measurements: time stamps before and after a collective, and the norm of gradients.
// Both are written to a buffer that Python reads without running a graph.

#include <stdint.h>
#include <time.h>

#include "arithmetic.h"
#include "library.h"
#include "operations.h"

namespace syncbn {
namespace {

constexpr int64_t kSlots = 2048;

// Reading the gradients of a large model again takes milliseconds, so their norm is computed at
// most once a second.
constexpr int64_t kMany = 1 << 20;
constexpr double kSecondsBetween = 1.0;

// One row per slot: start and end of a collective, or a value and its time.
double buffer[kSlots][2];

double now() {
  timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct Slot {
  explicit Slot(Construction& construction) {
    const int64_t slot = construction.integer("slot");
    if (slot < 0 || slot >= kSlots)
      construction.status.set(kInvalidArgument, "the buffer has %d slots. Received: slot=%lld",
                              int(kSlots), static_cast<long long>(slot));
    else
      row = buffer[slot];
  }

  double* row = nullptr;
};

struct Clock : Slot {
  explicit Clock(Construction& construction)
      : Slot(construction), end(construction.boolean("end")) {}

  bool end;
};

void note_time(const Clock& clock, Run& run) {
  clock.row[clock.end] = now();
  for (int i = 0; i < run.inputs(); ++i) run.set_output(i, run.input(i));
}

double sum_of_squares(const Tensor& tensor) {
  return kernels_of(tensor.type()).sum_of_squares(tensor.data(), tensor.size());
}

void note_norm(const Slot& slot, Run& run) {
  int64_t size = 0;
  for (int i = 0; i < run.inputs() && run.ok(); ++i) size += run.input(i).size();
  if (!run.ok() || (size > kMany && now() - slot.row[1] < kSecondsBetween)) return;
  double sum = 0;
  for (int i = 0; i < run.inputs() && run.ok(); ++i) sum += sum_of_squares(run.input(i));
  slot.row[0] = __builtin_sqrt(sum);
  slot.row[1] = now();
}

void same_shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  const int64_t count = tensorflow.ShapeInferenceContextNumInputs(context);
  for (int i = 0; i < count; ++i) set_output_shape(context, i, i, status);
}

void no_shapes(TF_ShapeInferenceContext*, TF_Status*) {}

}  // namespace

void register_telemetry() {
  register_operation(define<Clock, note_time>("SyncbnClock",
                                              {"T: list(type)", "slot: int", "end: bool"},
                                              {"tensors: T"}, {"same: T"}, same_shapes));
  // Stateful, so that a graph does not prune it for having no outputs.
  register_operation(define<Slot, note_norm>(
      "SyncbnNorm", {"T: list({half, bfloat16, float, double})", "slot: int"}, {"tensors: T"}, {},
      no_shapes, /*stateful=*/true));
}

}  // namespace syncbn

// The buffer and its number of slots, for Python.
SYNCBN_EXPORT double* syncbn_telemetry_buffer(int64_t* slots) {
  *slots = syncbn::kSlots;
  return &syncbn::buffer[0][0];
}

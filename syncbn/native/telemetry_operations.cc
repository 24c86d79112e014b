// What measuring a step takes, at the least price: the clock on both sides of a collective, and the
// norm of the gradients. Both leave their numbers on a board that Python reads without running a
// graph.

#include <stdint.h>
#include <time.h>

#include "arithmetic.h"
#include "library.h"
#include "operations.h"

namespace syncbn {
namespace {

constexpr int64_t kPlaces = 2048;

// To read the gradients of a large model once more takes milliseconds: their norm is taken no more
// than once a second.
constexpr int64_t kMany = 1 << 20;
constexpr double kSecondsBetween = 1.0;

// A row for each place in a graph: start and end of a collective, or a value and its time.
double board[kPlaces][2];

double now() {
  timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct Place {
  explicit Place(Construction& construction) {
    const int64_t place = construction.integer("place");
    if (place < 0 || place >= kPlaces)
      construction.status.set(kInvalidArgument, "the board has %d places. Received: place=%lld",
                              int(kPlaces), static_cast<long long>(place));
    else
      row = board[place];
  }

  double* row = nullptr;
};

struct Clock : Place {
  explicit Clock(Construction& construction)
      : Place(construction), end(construction.boolean("end")) {}

  bool end;
};

void note_time(const Clock& clock, Run& run) {
  clock.row[clock.end] = now();
  for (int i = 0; i < run.inputs(); ++i) run.set_output(i, run.input(i));
}

double sum_of_squares(const Tensor& tensor) {
  return kernels_of(tensor.type()).sum_of_squares(tensor.data(), tensor.size());
}

void note_norm(const Place& place, Run& run) {
  int64_t size = 0;
  for (int i = 0; i < run.inputs() && run.ok(); ++i) size += run.input(i).size();
  if (!run.ok() || (size > kMany && now() - place.row[1] < kSecondsBetween)) return;
  double sum = 0;
  for (int i = 0; i < run.inputs() && run.ok(); ++i) sum += sum_of_squares(run.input(i));
  place.row[0] = __builtin_sqrt(sum);
  place.row[1] = now();
}

void same_shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  const int64_t count = tensorflow.ShapeInferenceContextNumInputs(context);
  for (int i = 0; i < count; ++i) set_output_shape(context, i, i, status);
}

void no_shapes(TF_ShapeInferenceContext*, TF_Status*) {}

}  // namespace

void register_telemetry() {
  register_operation(define<Clock, note_time>("SyncbnClock",
                                              {"T: list(type)", "place: int", "end: bool"},
                                              {"tensors: T"}, {"same: T"}, same_shapes));
  // Stateful, or a graph would leave it out, for nothing comes of it.
  register_operation(define<Place, note_norm>(
      "SyncbnNorm", {"T: list({half, bfloat16, float, double})", "place: int"}, {"tensors: T"}, {},
      no_shapes, /*stateful=*/true));
}

}  // namespace syncbn

// The board, for Python to read, and how many places it has.
SYNCBN_EXPORT double* syncbn_board(int64_t* places) {
  *places = syncbn::kPlaces;
  return &syncbn::board[0][0];
}

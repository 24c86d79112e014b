// Entry points of the library: loading it with `tf.load_op_library` registers the operations, and
// `syncbn_start` initialises them.

#include "library.h"

#include <stdio.h>

#include "levels.h"
#include "threads.h"

namespace syncbn {
namespace {

const Level* chosen = nullptr;
bool registered = false;
const char* missing_function = nullptr;

__attribute__((constructor)) void on_load() {
  if (!find_tensorflow(&missing_function)) return;
  register_layer();
  register_statistics();
  register_mpi();
  register_exchange();
  register_telemetry();
  registered = true;
}

}  // namespace

const Arithmetic& chosen_arithmetic() { return *chosen->arithmetic; }

const Kernels& kernels_of(DataType type) {
  const Arithmetic& arithmetic = chosen_arithmetic();
  switch (type) {
    case kHalf:
      return arithmetic.half;
    case kBFloat16:
      return arithmetic.bfloat16;
    case kDouble:
      return arithmetic.wide;
    default:
      return arithmetic.single;
  }
}

}  // namespace syncbn

// Chooses the instruction set level `march`, or the best one for "", and returns its name. Null if
// the operations cannot run, with the reason in `message`.
SYNCBN_EXPORT const char* syncbn_start(const char* march, char* message, int message_size) {
  using namespace syncbn;
  if (!registered) {
    if (missing_function != nullptr)
      snprintf(message, message_size, "this TensorFlow has no %s in its C API", missing_function);
    else
      snprintf(message, message_size, "libtensorflow_framework.so.2 is not loaded");
    return nullptr;
  }
  const Level* level = choose_level(march, message, message_size);
  if (level == nullptr) return nullptr;
  chosen = level;
  return level->name;
}

// Sets the number of threads per operation.
SYNCBN_EXPORT void syncbn_use_threads(int count) { syncbn::set_thread_count(count); }

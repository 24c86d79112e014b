// The library as Python meets it: `tf.load_op_library` opens it, which registers the operations,
// and `syncbn_start` makes them ready to run.

#include "library.h"

#include <stdio.h>

#include "levels.h"
#include "threads.h"

namespace syncbn {
namespace {

const Level* chosen = nullptr;
bool registered = false;
const char* missing = nullptr;

__attribute__((constructor)) void on_load() {
  if (!find_tensorflow(&missing)) return;
  register_layer();
  register_statistics();
  register_mpi();
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

// Chooses the instructions called `march`, or the best for "", and returns their name. Null where
// the operations cannot run; `message` then says why.
SYNCBN_EXPORT const char* syncbn_start(const char* march, char* message, int message_size) {
  using namespace syncbn;
  if (!registered) {
    if (missing != nullptr)
      snprintf(message, message_size, "this TensorFlow has no %s in its C API", missing);
    else
      snprintf(message, message_size, "libtensorflow_framework.so.2 is not loaded");
    return nullptr;
  }
  const Level* level = choose_level(march, message, message_size);
  if (level == nullptr) return nullptr;
  chosen = level;
  return level->name;
}

// How many threads work on one operation.
SYNCBN_EXPORT void syncbn_use_threads(int count) { syncbn::set_thread_count(count); }

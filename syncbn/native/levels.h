// Chooses the build of the arithmetic for this processor.

#ifndef SYNCBN_NATIVE_LEVELS_H_
#define SYNCBN_NATIVE_LEVELS_H_

#include "arithmetic.h"

namespace syncbn {

struct Level {
  const char* name;  // as in -march
  const Arithmetic* arithmetic;
  bool (*supported)();
};

// The levels in this library, the best last; sets their count.
const Level* levels(int* count);

// The level `name`, or the best one that this processor supports for null or "". Null if there is
// none, with the reason in `message`.
const Level* choose_level(const char* name, char* message, int message_size);

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_LEVELS_H_

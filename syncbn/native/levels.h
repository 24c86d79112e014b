// Which build of the arithmetic this processor runs.

#ifndef SYNCBN_NATIVE_LEVELS_H_
#define SYNCBN_NATIVE_LEVELS_H_

#include "arithmetic.h"

namespace syncbn {

struct Level {
  const char* name;  // as compilers call it
  const Arithmetic* arithmetic;
  bool (*supported)();
};

// The levels in this library, the best last, and how many.
const Level* levels(int* count);

// The level called `name`, or the best this processor supports for null or "". Null where there is
// none; `message` then says why.
const Level* choose_level(const char* name, char* message, int message_size);

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_LEVELS_H_

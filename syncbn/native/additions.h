// Elementwise sums of two vectors, by TensorFlow data type.

#ifndef SYNCBN_NATIVE_ADDITIONS_H_
#define SYNCBN_NATIVE_ADDITIONS_H_

#include <stdint.h>

namespace syncbn {

struct Addition {
  int value_size;  // in bytes
  // total = first + second, `count` values; `total` may be one of the others.
  void (*run)(void* total, const void* first, const void* second, int64_t count);
};

// The addition for a TensorFlow data type; null if there is none.
const Addition* addition_of(int type);

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_ADDITIONS_H_

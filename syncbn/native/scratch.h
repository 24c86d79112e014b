#ifndef SYNCBN_NATIVE_SCRATCH_H_
#define SYNCBN_NATIVE_SCRATCH_H_

#include <stdint.h>
#include <stdlib.h>

namespace syncbn {

// Zeroed memory for one run of an operation.
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

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_SCRATCH_H_

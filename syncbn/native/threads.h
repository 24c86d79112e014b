// The threads that share the work of one operation: TensorFlow's C API does not lend its own.

#ifndef SYNCBN_NATIVE_THREADS_H_
#define SYNCBN_NATIVE_THREADS_H_

#include <stdint.h>

namespace syncbn {

// How many threads work on one operation, the one that calls `in_parallel` included.
int thread_count();
void set_thread_count(int count);

// Calls work(context, part) for each part, each once, on up to `thread_count` threads, and returns
// when all have ended. Threads wait asleep between calls. Several operations may call at once.
void in_parallel(int64_t parts, void (*work)(void* context, int64_t part), void* context);

// Calls work(part) likewise.
template <typename Work>
void for_each_part(int64_t parts, const Work& work) {
  in_parallel(
      parts, [](void* context, int64_t part) { (*static_cast<const Work*>(context))(part); },
      const_cast<Work*>(&work));
}

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_THREADS_H_

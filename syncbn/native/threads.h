// A thread pool for operations: TensorFlow's C API does not provide access to TensorFlow's.

#ifndef SYNCBN_NATIVE_THREADS_H_
#define SYNCBN_NATIVE_THREADS_H_

#include <stdint.h>

namespace syncbn {

// The number of threads per operation, including the one that calls `in_parallel`.
int thread_count();
void set_thread_count(int count);

// Calls work(context, part) once for each part, on up to `thread_count` threads, and returns when
// all have ended. Threads sleep between calls. Several operations may call it concurrently.
void in_parallel(int64_t parts, void (*work)(void* context, int64_t part), void* context);

// The same for work(part).
template <typename Work>
void for_each_part(int64_t parts, const Work& work) {
  in_parallel(
      parts, [](void* context, int64_t part) { (*static_cast<const Work*>(context))(part); },
      const_cast<Work*>(&work));
}

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_THREADS_H_

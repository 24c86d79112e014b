#include "threads.h"

#include <pthread.h>
#include <signal.h>

#include "floating_point.h"

namespace syncbn {
namespace {

// One call of `in_parallel`, on the stack of its caller. `lock` guards the mutable fields.
struct Job {
  void (*work)(void*, int64_t);
  void* context;
  int64_t parts;
  // Set by TensorFlow; all parts of an operation must use the same.
  FloatingPoint floating_point{};
  int64_t taken = 0, ended = 0;
  pthread_cond_t all_ended = PTHREAD_COND_INITIALIZER;
  Job* next = nullptr;
};

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t work_available = PTHREAD_COND_INITIALIZER;
Job* first_job = nullptr;  // queue of jobs with parts left, oldest first
int wanted_threads = 1, started_threads = 0;

void add(Job* job) {
  Job** end = &first_job;
  while (*end != nullptr) end = &(*end)->next;
  *end = job;
}

void remove(Job* job) {
  Job** place = &first_job;
  while (*place != job) place = &(*place)->next;
  *place = job->next;
}

// Runs one part of `job`, which must have one left. The lock is released during the work only.
void do_part(Job* job) {
  const int64_t part = job->taken++;
  if (job->taken == job->parts) remove(job);
  pthread_mutex_unlock(&lock);
  job->work(job->context, part);
  pthread_mutex_lock(&lock);
  if (++job->ended == job->parts) pthread_cond_signal(&job->all_ended);
}

void* serve(void*) {
  pthread_mutex_lock(&lock);
  for (;;) {
    while (first_job == nullptr) pthread_cond_wait(&work_available, &lock);
    first_job->floating_point.adopt();
    do_part(first_job);
  }
  return nullptr;
}

// Starts missing helper threads. With fewer, or none as in a forked process, the caller runs more
// parts itself. Helpers block all signals.
void start_threads() {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (started_threads < wanted_threads - 1) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, serve, nullptr) != 0) break;
    pthread_setname_np(thread, "syncbn");
    pthread_detach(thread);
    ++started_threads;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace

int thread_count() { return __atomic_load_n(&wanted_threads, __ATOMIC_RELAXED); }

void set_thread_count(int count) {
  __atomic_store_n(&wanted_threads, count > 1 ? count : 1, __ATOMIC_RELAXED);
}

void in_parallel(int64_t parts, void (*work)(void*, int64_t), void* context) {
  if (parts == 1 || thread_count() == 1) {
    for (int64_t part = 0; part < parts; ++part) work(context, part);
    return;
  }
  Job job{work, context, parts};
  pthread_mutex_lock(&lock);
  start_threads();
  add(&job);
  for (int64_t helper = 1; helper < parts && helper <= started_threads; ++helper)
    pthread_cond_signal(&work_available);
  while (job.taken < job.parts) do_part(&job);
  while (job.ended < job.parts) pthread_cond_wait(&job.all_ended, &lock);
  pthread_mutex_unlock(&lock);
  pthread_cond_destroy(&job.all_ended);
}

}  // namespace syncbn

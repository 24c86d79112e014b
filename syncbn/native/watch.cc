#include "watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

namespace syncbn {
namespace {

constexpr double kTickSeconds = 1;
constexpr int kLeastTicks = 4;

double tick_of(double limit) {
  return limit / kLeastTicks < kTickSeconds ? limit / kLeastTicks : kTickSeconds;
}

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

int64_t packed(Failure failure) {
  int64_t value;
  static_assert(sizeof(value) == sizeof(failure), "a failure is read and written atomically");
  memcpy(&value, &failure, sizeof value);
  return value;
}

Failure unpacked(int64_t value) {
  Failure failure;
  memcpy(&failure, &value, sizeof failure);
  return failure;
}

// News are so short that they fit in a socket's buffer as long as the peer is considered alive.
void send_news(const Watched& watched, Failure failure) {
  send(watched.socket, &failure, sizeof failure, MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace

Watch::Watch(int rank, Watched* ranks, int count, double limit)
    : rank_(rank),
      ranks_(ranks),
      count_(count),
      tick_seconds_(tick_of(limit)),
      most_silent_ticks_(static_cast<int>(limit / tick_seconds_ + 0.5)) {
  if (count_ == 0) return;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // the program's other threads handle signals
  const auto run = [](void* watch) -> void* {
    static_cast<Watch*>(watch)->run();
    return nullptr;
  };
  running_ = pthread_create(&thread_, nullptr, run, this) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (running_) pthread_setname_np(thread_, "syncbn watch");
}

Watch::~Watch() {
  fail(Cause::kLeft, rank_);
  for (int i = 0; i < count_; ++i) shutdown(ranks_[i].socket, SHUT_RDWR);  // ends `poll`
  if (running_) pthread_join(thread_, nullptr);
  for (int i = 0; i < count_; ++i) close(ranks_[i].socket);
  free(ranks_);
}

void Watch::fail(Cause cause, int rank) {
  const Failure failure{cause, rank};
  int64_t none = 0;
  if (!__atomic_compare_exchange_n(&failure_, &none, packed(failure), false, __ATOMIC_SEQ_CST,
                                   __ATOMIC_SEQ_CST))
    return;
  for (int i = 0; i < count_; ++i) send_news(ranks_[i], failure);
}

Failure Watch::failure() const { return unpacked(__atomic_load_n(&failure_, __ATOMIC_ACQUIRE)); }

void Watch::run() {
  pollfd* waited = static_cast<pollfd*>(calloc(count_, sizeof(pollfd)));
  if (waited == nullptr) abort();
  double next = now() + tick_seconds_;
  while (failure().cause == Cause::kNone) {
    for (int i = 0; i < count_; ++i) waited[i] = {ranks_[i].socket, POLLIN, 0};
    const double left = next - now();
    const int ready = poll(waited, count_, left > 0 ? static_cast<int>(left * 1000) + 1 : 0);
    for (int i = 0; ready > 0 && i < count_; ++i)
      if (waited[i].revents != 0) hear(ranks_[i]);
    if (now() < next) continue;
    // Counted in intervals of this thread: a process that was stopped itself, and continues, must
    // not take the time for silence of its peers.
    tick();
    next = now() + tick_seconds_;
  }
  free(waited);
}

void Watch::hear(Watched& watched) {
  const ssize_t got = recv(watched.socket, watched.partial.bytes + watched.partial_size,
                           sizeof(News) - watched.partial_size, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
  if (got <= 0) return fail(Cause::kEnded, watched.rank);
  watched.silent_ticks = 0;
  watched.partial_size += static_cast<int>(got);
  if (watched.partial_size < static_cast<int>(sizeof(News))) return;
  watched.partial_size = 0;
  Failure failure;
  memcpy(&failure, watched.partial.bytes, sizeof failure);
  if (failure.cause != Cause::kNone) fail(failure.cause, failure.rank);
}

void Watch::tick() {
  for (int i = 0; i < count_; ++i) {
    send_news(ranks_[i], {Cause::kNone, rank_});
    if (++ranks_[i].silent_ticks > most_silent_ticks_) fail(Cause::kSilent, ranks_[i].rank);
  }
}

}  // namespace syncbn

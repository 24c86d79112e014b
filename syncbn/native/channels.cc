#include "channels.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

namespace syncbn {
namespace {

// How long a rank that shares its core with others gives it away before it sleeps.
constexpr int64_t kYieldNanoseconds = 50000;
// A sleeping rank wakes up this often to see whether the exchange has failed.
constexpr int kSleepMilliseconds = 50;

int64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * int64_t{1000000000} + time.tv_nsec;
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

bool stopped(const int64_t* stop) { return __atomic_load_n(stop, __ATOMIC_ACQUIRE) != 0; }

// Calls `ready` until it is true, for a limited time: `spins` times in succession, or, if zero,
// giving the core to other threads in between. False if it did not become true.
//
// Not both: a rank with a core of its own that yields may lose it to another program for a time
// slice, as one that sleeps after this does not if it is woken first. Reasoned, not measured.
template <typename Ready>
bool becomes(const Ready& ready, int spins) {
  for (int i = 0; i < spins; ++i) {
    if (ready()) return true;
    relax();
  }
  if (spins > 0) return ready();
  const int64_t limit = now() + kYieldNanoseconds;
  do {
    if (ready()) return true;
    sched_yield();
  } while (now() < limit);
  return ready();
}

void post(Lane& lane, const Message& message, uint32_t number) {
  Lane::Slot& slot = lane.slots[number % 2];
  slot.header = message.header;
  memcpy(slot.data, message.data, message.header.bytes);
  __atomic_store_n(&lane.sent, number, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&lane.sleeping, __ATOMIC_SEQ_CST) != 0)
    syscall(SYS_futex, &lane.sent, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Waits for message `number`. False if it was stopped.
bool await(Lane& lane, uint32_t number, const int64_t* stop, int spins) {
  const auto arrived = [&] {
    return static_cast<int32_t>(__atomic_load_n(&lane.sent, __ATOMIC_ACQUIRE) - number) >= 0;
  };
  if (becomes(arrived, spins)) return true;
  __atomic_store_n(&lane.sleeping, 1, __ATOMIC_SEQ_CST);
  bool here;
  for (;;) {
    const uint32_t seen = __atomic_load_n(&lane.sent, __ATOMIC_SEQ_CST);
    here = static_cast<int32_t>(seen - number) >= 0;
    if (here || stopped(stop)) break;
    const timespec limit{0, kSleepMilliseconds * 1000000L};
    syscall(SYS_futex, &lane.sent, FUTEX_WAIT, seen, &limit, nullptr, 0);
  }
  __atomic_store_n(&lane.sleeping, 0, __ATOMIC_SEQ_CST);
  return here;
}

// Progress of one direction of a transfer over TCP: the header, then the data.
struct Transfer {
  iovec parts[2];
  int64_t done = 0, size;

  Transfer(void* header, void* data, int64_t data_size)
      : parts{{header, sizeof(Header)}, {data, static_cast<size_t>(data_size)}},
        size(static_cast<int64_t>(sizeof(Header)) + data_size) {}

  bool ended() const { return done == size; }

  // One call of `sendmsg` or `recvmsg`. Returns false if the connection is closed.
  template <typename Call>
  bool advance(int socket, const Call& call) {
    const int64_t header_left = static_cast<int64_t>(parts[0].iov_len) - done;
    iovec left[2];
    int count = 0;
    if (header_left > 0)
      left[count++] = {static_cast<char*>(parts[0].iov_base) + done,
                       static_cast<size_t>(header_left)};
    const int64_t skipped = header_left > 0 ? 0 : -header_left;
    left[count++] = {static_cast<char*>(parts[1].iov_base) + skipped, parts[1].iov_len - skipped};
    msghdr message{};
    message.msg_iov = left;
    message.msg_iovlen = count;
    const ssize_t moved = call(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (moved > 0) done += moved;
    return moved > 0 || (moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR));
  }
};

}  // namespace

Outcome Channel::swap(const Message* outgoing, Message* incoming, const int64_t* stop, int spins) {
  return memory != nullptr ? swap_in_memory(outgoing, incoming, stop, spins)
                           : swap_over_tcp(outgoing, incoming, stop, spins);
}

Outcome Channel::swap_in_memory(const Message* outgoing, Message* incoming, const int64_t* stop,
                                int spins) {
  if (outgoing != nullptr) post(memory->lanes[own_lane], *outgoing, ++sent);
  if (incoming == nullptr) return Outcome::kDone;
  Lane& lane = memory->lanes[1 - own_lane];
  if (!await(lane, ++received, stop, spins)) return Outcome::kStopped;
  const Lane::Slot& slot = lane.slots[received % 2];
  *incoming = {slot.header, slot.data};
  return Outcome::kDone;
}

Outcome Channel::swap_over_tcp(const Message* outgoing, Message* incoming, const int64_t* stop,
                               int spins) {
  Header sent_header{}, received_header{};
  const void* source = outgoing != nullptr ? outgoing->data : nullptr;
  if (outgoing != nullptr) sent_header = outgoing->header;
  Transfer out(&sent_header, const_cast<void*>(source), sent_header.bytes);
  Transfer in(&received_header, buffer, 0);  // its length is in the header
  if (outgoing == nullptr) out.done = out.size;
  if (incoming == nullptr) in.done = in.size;
  bool open = true, length_known = incoming == nullptr;
  const auto progress = [&] {
    if (!out.ended()) open = open && out.advance(socket, sendmsg);
    if (!in.ended() && open) open = in.advance(socket, recvmsg);
    if (!length_known && in.ended()) {
      length_known = true;
      if (received_header.bytes < 0 || received_header.bytes > kChunkBytes) open = false;
      in.parts[1].iov_len = open ? received_header.bytes : 0;
      in.size += in.parts[1].iov_len;
      if (!in.ended() && open) open = in.advance(socket, recvmsg);
    }
    return !open || (out.ended() && in.ended());
  };
  if (!becomes(progress, spins / 10)) {  // a system call takes longer than a look at memory
    do {
      if (stopped(stop)) return Outcome::kStopped;
      pollfd waited{socket, 0, 0};
      waited.events = static_cast<int16_t>((out.ended() ? 0 : POLLOUT) | (in.ended() ? 0 : POLLIN));
      poll(&waited, 1, kSleepMilliseconds);
    } while (!progress());
  }
  if (!open) return Outcome::kClosed;
  if (incoming != nullptr) *incoming = {received_header, buffer};
  return Outcome::kDone;
}

}  // namespace syncbn

#include "exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "additions.h"
#include "floating_point.h"

namespace syncbn {
namespace {

// How long a rank whose peer closed a connection waits for the news of the reason.
constexpr int kNewsMilliseconds = 500;

}  // namespace

// A part of a vector that fits in one message.
struct Exchange::Part {
  Header header;
  void* values;
  int64_t count;
  const Addition* addition;

  void add(const void* first, const void* second) const {
    addition->run(values, first, second, count);
  }
};

Exchange::Exchange(int rank, int size, Peer* peers, int peer_count, Watched* watched, double limit,
                   int spins)
    : rank_(rank),
      size_(size),
      peers_(peers),
      peer_count_(peer_count),
      limit_(limit),
      spins_(spins),
      watch_(rank, watched, peer_count, limit) {}

Exchange::~Exchange() {
  for (int i = 0; i < peer_count_; ++i) {
    Channel& channel = peers_[i].channel;
    if (channel.socket >= 0) close(channel.socket);
    if (channel.memory != nullptr) munmap(channel.memory, sizeof(SharedMemory));
    free(channel.buffer);
  }
  free(peers_);
}

bool Exchange::sum(const void* from, void* to, int64_t count, int type, char* message,
                   int message_size) {
  const Addition* addition = addition_of(type);
  if (addition == nullptr) {
    snprintf(message, message_size, "values of data type %d cannot be summed", type);
    return false;
  }
  const DefaultFloatingPoint mode;  // the bits must not depend on the mode of this rank's thread
  const int64_t size = addition->value_size, most = kChunkBytes / size;
  ++sequence_;
  if (from != to && count > 0) memcpy(to, from, count * size);
  // An empty vector is sent as well: it must be empty on every rank.
  for (int64_t first = 0; first == 0 || first < count; first += most) {
    const int64_t length = count - first < most ? count - first : most;
    const Header header{sequence_, count, type, static_cast<int32_t>(length * size)};
    const Part part{header, static_cast<char*>(to) + first * size, length, addition};
    if (watch_.failure().cause == Cause::kNone && sum_part(part)) continue;
    describe(header, message, message_size);
    return false;
  }
  return true;
}

bool Exchange::sum_part(const Part& part) {
  int doubling = 1;  // the ranks that take part in recursive doubling
  while (2 * doubling <= size_) doubling *= 2;
  const int excess = size_ - doubling;
  const bool paired = rank_ < 2 * excess;
  if (paired && rank_ % 2 == 1) {
    const void* total = swap(rank_ - 1, part);
    if (total != nullptr) memcpy(part.values, total, part.header.bytes);
    return total != nullptr;
  }
  if (paired) {
    const void* theirs = receive(rank_ + 1, part);
    if (theirs == nullptr) return false;
    part.add(part.values, theirs);
  }
  const int place = paired ? rank_ / 2 : rank_ - excess;
  for (int distance = 1; distance < doubling; distance *= 2) {
    const int there = place ^ distance;
    const int partner = there < excess ? 2 * there : there + excess;
    const void* theirs = swap(partner, part);
    if (theirs == nullptr) return false;
    // The lower rank's values first, on both ranks: the sum of two NaNs is the first one.
    const bool lower = rank_ < partner;
    part.add(lower ? part.values : theirs, lower ? theirs : part.values);
  }
  return !paired || send(rank_ + 1, part);
}

const void* Exchange::swap(int partner, const Part& part) {
  const Message outgoing{part.header, part.values};
  Message incoming{};
  return transfer(partner, part, &outgoing, &incoming) ? incoming.data : nullptr;
}

bool Exchange::send(int partner, const Part& part) {
  const Message outgoing{part.header, part.values};
  return transfer(partner, part, &outgoing, nullptr);
}

const void* Exchange::receive(int partner, const Part& part) {
  Message incoming{};
  return transfer(partner, part, nullptr, &incoming) ? incoming.data : nullptr;
}

bool Exchange::transfer(int partner, const Part& part, const Message* outgoing, Message* incoming) {
  int index = 0;
  while (peers_[index].rank != partner) ++index;
  switch (peers_[index].channel.swap(outgoing, incoming, watch_.failed(), spins_)) {
    case Outcome::kStopped:
      return false;
    case Outcome::kClosed:
      for (int i = 0; i < kNewsMilliseconds && *watch_.failed() == 0; ++i) usleep(1000);
      watch_.fail(Cause::kEnded, partner);
      return false;
    case Outcome::kDone:
      break;
  }
  if (incoming == nullptr || incoming->header.equals(part.header)) return true;
  unequal_ = incoming->header;
  watch_.fail(Cause::kUnequal, partner);
  return false;
}

void Exchange::describe(const Header& mine, char* message, int message_size) const {
  const Failure failure = watch_.failure();
  switch (failure.cause) {
    case Cause::kSilent:
      snprintf(message, message_size,
               "heartbeat timeout: rank %d is stopped, or its connection is cut (nothing received "
               "for %g s)",
               failure.rank, limit_);
      return;
    case Cause::kUnequal:
      if (unequal_.sequence == 0)
        snprintf(message, message_size,
                 "rank %d and another rank sent unequal sums: every rank must send the same "
                 "number of values, of the same dtype, in the same order",
                 failure.rank);
      else
        snprintf(message, message_size,
                 "this rank sent %lld values of data type %d in sum %llu, and rank %d sent %lld "
                 "values of data type %d in sum %llu: every rank must send the same number, in the "
                 "same order; look for layers or metrics that exist on some ranks only, and for an "
                 "empty batch",
                 static_cast<long long>(mine.count), mine.type,
                 static_cast<unsigned long long>(mine.sequence), failure.rank,
                 static_cast<long long>(unequal_.count), unequal_.type,
                 static_cast<unsigned long long>(unequal_.sequence));
      return;
    case Cause::kLeft:
      snprintf(message, message_size,
               "Horovod has been shut down: rank %d has left the job or ended", failure.rank);
      return;
    default:
      snprintf(message, message_size, "Connection closed by peer: rank %d has ended", failure.rank);
  }
}

}  // namespace syncbn

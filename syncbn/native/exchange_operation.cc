// The sum of an exchange as a TensorFlow operation. The exchange is connected when an operation
// first needs it, and again after Horovod was initialised again (elastic jobs): every rank comes to
// its first sum in the same place of the program, whether or not it has just joined, and graphs
// remain valid.

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "exchange.h"
#include "library.h"
#include "operations.h"

namespace syncbn {
namespace {

// Connects the ranks and returns the exchange; null on failure, with the reason in `message`.
using Connect = void* (*)(char* message, int size);

// A group of ranks. `exchange` changes only while `lock` is held, but may be read at any time.
struct Group {
  Connect connect;
  pthread_mutex_t lock;
  Exchange* exchange;
};

constexpr int kMaxGroups = 4096;
Group groups[kMaxGroups];
int group_count = 0;
pthread_mutex_t registration = PTHREAD_MUTEX_INITIALIZER;

struct DirectAllReduce {
  explicit DirectAllReduce(Construction& construction) : group(construction.integer("group")) {
    if (group < 0 || group >= __atomic_load_n(&group_count, __ATOMIC_ACQUIRE))
      construction.status.set(kInvalidArgument,
                              "this graph was traced in another process: its group of ranks %lld "
                              "is not known here",
                              static_cast<long long>(group));
  }

  int64_t group;
};

void direct_all_reduce(const DirectAllReduce& operation, Run& run) {
  Shape shape;
  int type;
  {
    const Tensor input = run.input(0);
    if (!run.ok()) return;
    shape = Shape::of(input);
    type = input.type();
    if (input.rank() > kMaxDims)
      run.status.set(kInvalidArgument,
                     "a sum over ranks has at most %d dimensions. Received: %d dimensions",
                     kMaxDims, input.rank());
  }
  const Tensor output = run.output_in_place_of(0, 0, shape);
  const Tensor input = run.input(0);
  if (!run.ok()) return;

  Group& group = groups[operation.group];
  char reason[384] = "";
  pthread_mutex_lock(&group.lock);
  Exchange* exchange = group.exchange;
  if (exchange == nullptr) {
    exchange = static_cast<Exchange*>(group.connect(reason, sizeof reason));
    __atomic_store_n(&group.exchange, exchange, __ATOMIC_RELEASE);
  }
  const bool done = exchange != nullptr && exchange->sum(input.data(), output.data(), shape.size(),
                                                         type, reason, sizeof reason);
  pthread_mutex_unlock(&group.lock);
  // Elastic programs recognize a failed collective, after which they start again with other ranks,
  // by this name and code. A failure to connect has the name in its reason if Horovod is the
  // reason.
  if (exchange == nullptr)
    run.status.set(kUnknownError, "the ranks cannot be connected for direct sums: %s", reason);
  else if (!done)
    run.status.set(kUnknownError, "HorovodAllreduce failed (direct exchange between ranks): %s",
                   reason);
}

SharedMemory* map(int descriptor) {
  void* mapped =
      mmap(nullptr, sizeof(SharedMemory), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  close(descriptor);
  return mapped == MAP_FAILED ? nullptr : static_cast<SharedMemory*>(mapped);
}

void send_immediately(int socket) {
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

void* allocate(int64_t bytes) {
  void* memory = calloc(1, bytes > 0 ? bytes : 1);
  if (memory == nullptr) abort();
  return memory;
}

}  // namespace

// Stateful, so that TensorFlow runs sums in program order, which is the same on every rank.
void register_exchange() {
  register_operation(define<DirectAllReduce, direct_all_reduce>(
      "SyncbnDirectAllReduce",
      {"T: {float, double, int8, uint8, int16, uint16, int32, uint32, int64, uint64}",
       "group: int"},
      {"tensor: T"}, {"total: T"}, shapes<0>, /*stateful=*/true));
}

}  // namespace syncbn

// Registers a group of ranks and returns its number in this process; -1 if there are too many.
SYNCBN_EXPORT int64_t syncbn_register_group(void* (*connect)(char*, int)) {
  using namespace syncbn;
  pthread_mutex_lock(&registration);
  int number = -1;
  if (group_count < kMaxGroups) {
    number = group_count;
    groups[number] = {connect, PTHREAD_MUTEX_INITIALIZER, nullptr};
    __atomic_store_n(&group_count, number + 1, __ATOMIC_RELEASE);
  }
  pthread_mutex_unlock(&registration);
  return number;
}

// The size in bytes of the memory that two ranks of one host share.
SYNCBN_EXPORT int64_t syncbn_shared_memory_size() { return sizeof(syncbn::SharedMemory); }

// Creates the exchange of a rank from the descriptors of its connections to `count` other ranks,
// and takes ownership of them: `watches` are sockets for heartbeats, `channels` shared memory where
// `shared` is not zero, otherwise TCP sockets. Null if memory cannot be mapped.
SYNCBN_EXPORT void* syncbn_open_exchange(int rank, int size, int count, const int* ranks,
                                         const int* watches, const int* channels, const int* shared,
                                         double limit, int spins) {
  using namespace syncbn;
  auto* peers = static_cast<Peer*>(allocate(count * sizeof(Peer)));
  auto* watched = static_cast<Watched*>(allocate(count * sizeof(Watched)));
  bool mapped = true;
  for (int i = 0; i < count; ++i) {
    peers[i] = {ranks[i], {}};
    watched[i] = {ranks[i], watches[i]};
    Channel& channel = peers[i].channel;
    channel.own_lane = rank < ranks[i] ? 0 : 1;
    if (shared[i] != 0) {
      channel.memory = map(channels[i]);
      mapped = mapped && channel.memory != nullptr;
    } else {
      channel.socket = channels[i];
      channel.buffer = static_cast<unsigned char*>(allocate(kChunkBytes));
      send_immediately(channels[i]);
      send_immediately(watches[i]);
    }
  }
  auto* exchange =
      new (allocate(sizeof(Exchange))) Exchange(rank, size, peers, count, watched, limit, spins);
  if (mapped) return exchange;
  exchange->~Exchange();
  free(exchange);
  return nullptr;
}

// Ends the exchange of a group; a sum in progress fails. The next sum connects the ranks again.
SYNCBN_EXPORT void syncbn_leave_group(int64_t number) {
  using namespace syncbn;
  Group& group = groups[number];
  Exchange* exchange = __atomic_load_n(&group.exchange, __ATOMIC_ACQUIRE);
  if (exchange == nullptr) return;
  exchange->leave();
  pthread_mutex_lock(&group.lock);
  __atomic_store_n(&group.exchange, static_cast<Exchange*>(nullptr), __ATOMIC_RELEASE);
  pthread_mutex_unlock(&group.lock);
  exchange->~Exchange();
  free(exchange);
}

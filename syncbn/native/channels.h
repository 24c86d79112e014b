// Messages between two ranks of a direct exchange: through shared memory on one host, over TCP
// between hosts. Both ends send and receive in turn, so neither is ever more than one message
// ahead.

#ifndef SYNCBN_NATIVE_CHANNELS_H_
#define SYNCBN_NATIVE_CHANNELS_H_

#include <stdint.h>

namespace syncbn {

// The largest message; longer vectors are sent in parts.
constexpr int64_t kChunkBytes = 65536;

// What both ranks must agree on before they add each other's values.
struct Header {
  uint64_t sequence;  // the number of the sum
  int64_t count;      // values in the whole sum
  int32_t type;       // a TensorFlow data type
  int32_t bytes;      // of this message

  bool equals(const Header& other) const {
    return sequence == other.sequence && count == other.count && type == other.type &&
           bytes == other.bytes;
  }
};

struct Message {
  Header header;
  const void* data;
};

// Messages in one direction, in memory that both processes have mapped. The sender fills the two
// slots alternately; `sent` counts its messages.
struct Lane {
  struct Slot {
    alignas(64) Header header;
    alignas(64) unsigned char data[kChunkBytes];
  };

  alignas(64) uint32_t sent;
  alignas(64) uint32_t sleeping;  // whether the receiver sleeps until `sent` changes
  Slot slots[2];
};

struct SharedMemory {
  Lane lanes[2];  // from the lower rank, from the higher rank
};

enum class Outcome { kDone, kStopped, kClosed };

// One end of the connection to another rank, either through `memory` or over the TCP socket
// `socket`.
struct Channel {
  SharedMemory* memory = nullptr;
  int socket = -1;
  int own_lane = 0;
  uint32_t sent = 0, received = 0;
  unsigned char* buffer = nullptr;  // of a message received over TCP

  // Sends one message and receives one; null omits either. The received data are valid until the
  // next call. kStopped: `*stop` is no longer zero; kClosed: the other rank closed the socket.
  // `spins`: how often to look for a message before sleeping; 0 if ranks share cores.
  Outcome swap(const Message* outgoing, Message* incoming, const int64_t* stop, int spins);

 private:
  Outcome swap_in_memory(const Message* outgoing, Message* incoming, const int64_t* stop,
                         int spins);
  Outcome swap_over_tcp(const Message* outgoing, Message* incoming, const int64_t* stop, int spins);
};

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_CHANNELS_H_

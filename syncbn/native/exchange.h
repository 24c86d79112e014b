// Sums over the ranks of a group by messages between them, without the background thread of
// Horovod, which waits for its next cycle.
//
// Recursive doubling (R. Thakur, R. Rabenseifner, W. Gropp, Optimization of Collective
// Communication Operations in MPICH, 2005, https://doi.org/10.1177/1094342005051521): in step k
// each rank exchanges its sum with the rank at distance 2^k. If the number of ranks is not a power
// of two, the excess ranks first give their values to a neighbour, and finally receive the result
// from it. Both ranks of a pair add the same two vectors in the same order, so all ranks end with
// the same bits.

#ifndef SYNCBN_NATIVE_EXCHANGE_H_
#define SYNCBN_NATIVE_EXCHANGE_H_

#include <stdint.h>

#include "channels.h"
#include "watch.h"

namespace syncbn {

// Another rank with which this one exchanges messages.
struct Peer {
  int rank;
  Channel channel;
};

class Exchange {
 public:
  // Takes ownership of `peers`, allocated with malloc, and of their sockets and memory. The watch
  // must have the same ranks. `spins`: see Channel.
  Exchange(int rank, int size, Peer* peers, int peer_count, Watched* watched, double limit,
           int spins);
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // Makes a sum in progress, and every later one, fail.
  void leave() { watch_.fail(Cause::kLeft, rank_); }

  // Sums `count` values of a TensorFlow data type over all ranks, from `from` to `to`, which may be
  // equal. On failure it returns false, with the reason in `message`. One call at a time.
  bool sum(const void* from, void* to, int64_t count, int type, char* message, int message_size);

 private:
  struct Part;
  bool sum_part(const Part& part);
  const void* swap(int partner, const Part& part);
  bool send(int partner, const Part& part);
  const void* receive(int partner, const Part& part);
  bool transfer(int partner, const Part& part, const Message* outgoing, Message* incoming);
  void describe(const Header& mine, char* message, int message_size) const;

  const int rank_, size_;
  Peer* const peers_;
  const int peer_count_;
  const double limit_;
  const int spins_;
  uint64_t sequence_ = 0;
  Header unequal_{};  // what a peer sent instead of the same sum
  Watch watch_;
};

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_EXCHANGE_H_

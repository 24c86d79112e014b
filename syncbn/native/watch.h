// Detects that a rank of a direct exchange has ended, hangs or is unreachable, and spreads the
// news.
//
// A process that ends closes its sockets, which its peers notice immediately. A stopped process or
// a cut connection sends no heartbeats. Whoever notices tells its own peers, so that all ranks of
// the exchange name the same cause.

#ifndef SYNCBN_NATIVE_WATCH_H_
#define SYNCBN_NATIVE_WATCH_H_

#include <pthread.h>
#include <stdint.h>

namespace syncbn {

enum class Cause : int32_t {
  kNone,
  kEnded,    // closed its connection
  kSilent,   // sent no heartbeat for too long
  kUnequal,  // sent another sum
  kLeft      // shut Horovod down
};

// Why an exchange cannot be used any more, and the rank that is the cause.
struct Failure {
  Cause cause;
  int32_t rank;
};

// A record on the wire; heartbeats have no cause.
struct News {
  unsigned char bytes[sizeof(Failure)];
};

struct Watched {
  int rank;
  int socket;            // the Watch owns it
  int silent_ticks = 0;  // heartbeat intervals since the last news
  News partial{};
  int partial_size = 0;
};

class Watch {
 public:
  // Takes ownership of `ranks`, allocated with malloc. `limit`: seconds without a heartbeat after
  // which a rank is considered lost.
  Watch(int rank, Watched* ranks, int count, double limit);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Ends the use of the exchange and tells the peers. Only the first failure counts.
  void fail(Cause cause, int rank);
  Failure failure() const;
  // Not zero once there is a failure.
  const int64_t* failed() const { return &failure_; }

 private:
  void run();
  void hear(Watched& watched);
  void tick();

  const int rank_;
  Watched* const ranks_;
  const int count_;
  const double tick_seconds_;
  const int most_silent_ticks_;
  int64_t failure_ = 0;
  pthread_t thread_;
  bool running_ = false;
};

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_WATCH_H_

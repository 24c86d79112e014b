// A sum over ranks as a TensorFlow operation: MPI_Allreduce without Python in between.

#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#include "library.h"
#include "operations.h"

namespace syncbn {
namespace {

// MPI as handed over by mpi4py: the address of MPI_Allreduce and handles of this process. Handles
// are pointers in Open MPI and ints in MPICH.
struct Mpi {
  void* all_reduce;
  void* in_place;
  int64_t communicator, sum;
  bool pointers;
};

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
Mpi* known = nullptr;
int64_t known_count = 0;

template <typename Handle>
int call_all_reduce(const Mpi& mpi, const void* from, void* to, int count, int64_t type) {
  using Function = int (*)(const void*, void*, int, Handle, Handle, Handle);
  return reinterpret_cast<Function>(mpi.all_reduce)(from, to, count, (Handle)type, (Handle)mpi.sum,
                                                    (Handle)mpi.communicator);
}

struct AllReduce {
  explicit AllReduce(Construction& construction) : datatype(construction.integer("datatype")) {
    const int64_t communicator = construction.integer("communicator");
    pthread_mutex_lock(&lock);
    if (communicator >= 0 && communicator < known_count)
      mpi = known[communicator];
    else
      construction.status.set(kInvalidArgument,
                              "this graph was traced in another process: its MPI communicator %lld "
                              "is not known here",
                              static_cast<long long>(communicator));
    pthread_mutex_unlock(&lock);
  }

  Mpi mpi{};
  int64_t datatype;
};

void all_reduce(const AllReduce& operation, Run& run) {
  Shape shape;
  {
    const Tensor input = run.input(0);
    if (!run.ok()) return;
    shape = Shape::of(input);
    if (input.size() > INT_MAX || input.rank() > kMostDims)
      run.status.set(
          kInvalidArgument,
          "MPI sums at most %d numbers at once, in at most %d dimensions. Received: %lld "
          "in %d",
          INT_MAX, kMostDims, static_cast<long long>(input.size()), input.rank());
  }
  const Tensor output = run.output_in_place_of(0, shape);
  const Tensor input = run.input(0);
  if (!run.ok()) return;

  const Mpi& mpi = operation.mpi;
  const void* from = input.data() == output.data() ? mpi.in_place : input.data();
  const auto call = mpi.pointers ? call_all_reduce<void*> : call_all_reduce<int>;
  const int code = call(mpi, from, output.data(), int(shape.size()), operation.datatype);
  if (code != 0)
    run.status.set(kUnavailable,
                   "MPI_Allreduce failed with code %d for %lld numbers of this rank: every rank "
                   "must send as many, in the same order; look for layers or metrics that only "
                   "some ranks have, and for a batch without rows",
                   code, static_cast<long long>(shape.size()));
}

}  // namespace

// Stateful, so that TensorFlow runs sums in program order, the same on every rank.
void register_mpi() {
  register_operation(define<AllReduce, all_reduce>(
      "SyncbnMpiAllReduce",
      {"T: {float, double, int8, uint8, int16, uint16, int32, uint32, int64, uint64}",
       "communicator: int", "datatype: int"},
      {"tensor: T"}, {"total: T"}, shapes<0>, /*stateful=*/true));
}

}  // namespace syncbn

// Makes an MPI communicator known and returns its number in this process.
SYNCBN_EXPORT int64_t syncbn_register_mpi(void* all_reduce, void* in_place, int64_t communicator,
                                          int64_t sum, int handles_are_pointers) {
  using namespace syncbn;
  pthread_mutex_lock(&lock);
  known = static_cast<Mpi*>(realloc(known, (known_count + 1) * sizeof(Mpi)));
  if (known == nullptr) abort();
  known[known_count] = {all_reduce, in_place, communicator, sum, handles_are_pointers != 0};
  const int64_t number = known_count++;
  pthread_mutex_unlock(&lock);
  return number;
}

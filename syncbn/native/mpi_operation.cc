// MPI_Allreduce as a TensorFlow operation, without Python.

#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#include "library.h"
#include "operations.h"

namespace syncbn {
namespace {

// The address of MPI_Allreduce and handles of this process, from mpi4py. Handles are pointers in
// Open MPI and ints in MPICH.
struct Mpi {
  void* all_reduce;
  void* in_place;
  int64_t communicator, sum;
  bool pointers;
};

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
Mpi* communicators = nullptr;
int64_t communicator_count = 0;

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
    if (communicator >= 0 && communicator < communicator_count)
      mpi = communicators[communicator];
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
    if (input.size() > INT_MAX || input.rank() > kMaxDims)
      run.status.set(
          kInvalidArgument,
          "an MPI sum has at most %d values in at most %d dimensions. Received: %lld values "
          "in %d dimensions",
          INT_MAX, kMaxDims, static_cast<long long>(input.size()), input.rank());
  }
  const Tensor output = run.output_in_place_of(0, 0, shape);
  const Tensor input = run.input(0);
  if (!run.ok()) return;

  const Mpi& mpi = operation.mpi;
  const void* from = input.data() == output.data() ? mpi.in_place : input.data();
  const auto call = mpi.pointers ? call_all_reduce<void*> : call_all_reduce<int>;
  const int code = call(mpi, from, output.data(), int(shape.size()), operation.datatype);
  if (code != 0)
    run.status.set(kUnavailable,
                   "MPI_Allreduce failed with code %d for %lld values of this rank: every rank "
                   "must send the same number, in the same order; look for layers or metrics that "
                   "exist on some ranks only, and for an empty batch",
                   code, static_cast<long long>(shape.size()));
}

}  // namespace

// Stateful, so that TensorFlow runs sums in program order, which is the same on every rank.
void register_mpi() {
  register_operation(define<AllReduce, all_reduce>(
      "SyncbnMpiAllReduce",
      {"T: {float, double, int8, uint8, int16, uint16, int32, uint32, int64, uint64}",
       "communicator: int", "datatype: int"},
      {"tensor: T"}, {"total: T"}, shapes<0>, /*stateful=*/true));
}

}  // namespace syncbn

// Registers an MPI communicator and returns its number in this process.
SYNCBN_EXPORT int64_t syncbn_register_mpi(void* all_reduce, void* in_place, int64_t communicator,
                                          int64_t sum, int handles_are_pointers) {
  using namespace syncbn;
  pthread_mutex_lock(&lock);
  communicators = static_cast<Mpi*>(realloc(communicators, (communicator_count + 1) * sizeof(Mpi)));
  if (communicators == nullptr) abort();
  communicators[communicator_count] = {all_reduce, in_place, communicator, sum,
                                       handles_are_pointers != 0};
  const int64_t number = communicator_count++;
  pthread_mutex_unlock(&lock);
  return number;
}

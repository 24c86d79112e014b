// A sum over ranks as a TensorFlow operation: MPI_Allreduce without Python in between.

#include <cstdint>
#include <mutex>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace syncbn {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

// MPI as handed over by mpi4py: the address of MPI_Allreduce and handles of this process. Handles
// are pointers in Open MPI and ints in MPICH.
struct Mpi {
  void* all_reduce;
  void* in_place;
  int64_t communicator, sum;
  bool pointers;
};

std::mutex mpi_lock;
std::vector<Mpi> mpi_table;

template <typename Handle>
int call_all_reduce(const Mpi& mpi, const void* from, void* to, int count, int64_t type) {
  using Function = int (*)(const void*, void*, int, Handle, Handle, Handle);
  return reinterpret_cast<Function>(mpi.all_reduce)(from, to, count, (Handle)type, (Handle)mpi.sum,
                                                    (Handle)mpi.communicator);
}

class MpiAllReduceOp : public OpKernel {
 public:
  explicit MpiAllReduceOp(OpKernelConstruction* context) : OpKernel(context) {
    int64_t communicator;
    OP_REQUIRES_OK(context, context->GetAttr("communicator", &communicator));
    OP_REQUIRES_OK(context, context->GetAttr("datatype", &datatype_));
    std::lock_guard<std::mutex> guard(mpi_lock);
    OP_REQUIRES(context, communicator >= 0 && communicator < int64_t(mpi_table.size()),
                absl::InvalidArgumentError(absl::StrCat(
                    "this graph was traced in another process: its MPI communicator ", communicator,
                    " is not known here")));
    mpi_ = mpi_table[communicator];
  }
  bool IsExpensive() override { return false; }

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    Tensor* output;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, input.shape(), &output));
    OP_REQUIRES(context, input.NumElements() <= INT32_MAX,
                absl::InvalidArgumentError(absl::StrCat(
                    "MPI sums at most 2147483647 numbers at once. Received: ",
                    input.NumElements())));
    const void* from = input.data() == output->data() ? mpi_.in_place : input.data();
    const auto call = mpi_.pointers ? call_all_reduce<void*> : call_all_reduce<int>;
    const int code = call(mpi_, from, output->data(), int(input.NumElements()), datatype_);
    OP_REQUIRES(context, code == 0,
                absl::UnavailableError(absl::StrCat("MPI_Allreduce failed with code ", code)));
  }

 private:
  Mpi mpi_;
  int64_t datatype_;
};

}  // namespace

REGISTER_OP("SyncbnMpiAllReduce")
    .Attr("T: {float, double, int8, uint8, int16, uint16, int32, uint32, int64, uint64}")
    .Attr("communicator: int")
    .Attr("datatype: int")
    .Input("tensor: T")
    .Output("total: T")
    .SetIsStateful()  // so that TensorFlow runs sums in program order, the same on every rank
    .SetShapeFn(tensorflow::shape_inference::UnchangedShape);

REGISTER_KERNEL_BUILDER(Name("SyncbnMpiAllReduce").Device(DEVICE_CPU), MpiAllReduceOp);

}  // namespace syncbn

// Makes an MPI communicator known and returns its number in this process.
extern "C" int64_t syncbn_register_mpi(void* all_reduce, void* in_place, int64_t communicator,
                                       int64_t sum, int handles_are_pointers) {
  std::lock_guard<std::mutex> guard(syncbn::mpi_lock);
  syncbn::mpi_table.push_back({all_reduce, in_place, communicator, sum, handles_are_pointers != 0});
  return int64_t(syncbn::mpi_table.size()) - 1;
}

// What measuring a step takes, at the least price: the clock on both sides of a collective, and the
// norm of the gradients. Both leave their numbers on a board that Python reads without running a graph.

#include <chrono>
#include <cmath>
#include <cstdint>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace syncbn {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::shape_inference::InferenceContext;

constexpr int64_t kPlaces = 2048;

// To read the gradients of a large model once more takes milliseconds: their norm is taken no more
// than once a second.
constexpr int64_t kMany = 1 << 20;
constexpr double kSecondsBetween = 1.0;

// A row for each place in a graph: start and end of a collective, or a value and its time.
double board[kPlaces][2];

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

class PlaceOp : public OpKernel {
 public:
  explicit PlaceOp(OpKernelConstruction* context) : OpKernel(context) {
    int64_t place;
    OP_REQUIRES_OK(context, context->GetAttr("place", &place));
    OP_REQUIRES(context, place >= 0 && place < kPlaces,
                absl::InvalidArgumentError("the board has no such place"));
    row_ = board[place];
  }
  bool IsExpensive() override { return false; }

 protected:
  double* row_;
};

class ClockOp : public PlaceOp {
 public:
  explicit ClockOp(OpKernelConstruction* context) : PlaceOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("end", &end_));
  }

  void Compute(OpKernelContext* context) override {
    row_[end_] = now();
    for (int i = 0; i < context->num_inputs(); ++i) context->set_output(i, context->input(i));
  }

 private:
  bool end_;
};

template <typename Value>
double sum_of_squares(const Tensor& tensor) {
  const Value* x = tensor.flat<Value>().data();
  const int64_t size = tensor.NumElements();
  constexpr int64_t kLanes = 8;  // sums side by side, which the compiler makes into one vector
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = double(x[i + lane]);
      lanes[lane] += value * value;
    }
  for (; i < size; ++i) lanes[0] += double(x[i]) * double(x[i]);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

class NormOp : public PlaceOp {
 public:
  using PlaceOp::PlaceOp;

  void Compute(OpKernelContext* context) override {
    int64_t size = 0;
    for (int i = 0; i < context->num_inputs(); ++i) size += context->input(i).NumElements();
    if (size > kMany && now() - row_[1] < kSecondsBetween) return;
    double sum = 0;
    for (int i = 0; i < context->num_inputs(); ++i) {
      const Tensor& tensor = context->input(i);
      switch (tensor.dtype()) {
        case tensorflow::DT_HALF: sum += sum_of_squares<Eigen::half>(tensor); break;
        case tensorflow::DT_BFLOAT16: sum += sum_of_squares<Eigen::bfloat16>(tensor); break;
        case tensorflow::DT_FLOAT: sum += sum_of_squares<float>(tensor); break;
        default: sum += sum_of_squares<double>(tensor);
      }
    }
    row_[0] = std::sqrt(sum);
    row_[1] = now();
  }
};

}  // namespace

REGISTER_OP("SyncbnClock")
    .Attr("T: list(type)")
    .Attr("place: int")
    .Attr("end: bool")
    .Input("tensors: T")
    .Output("same: T")
    .SetShapeFn([](InferenceContext* context) {
      for (int i = 0; i < context->num_inputs(); ++i) context->set_output(i, context->input(i));
      return absl::OkStatus();
    });

REGISTER_OP("SyncbnNorm")
    .Attr("T: list({half, bfloat16, float, double})")
    .Attr("place: int")
    .Input("tensors: T")
    .SetIsStateful()  // or a graph would leave it out, for nothing comes of it
    .SetShapeFn(tensorflow::shape_inference::NoOutputs);

REGISTER_KERNEL_BUILDER(Name("SyncbnClock").Device(DEVICE_CPU), ClockOp);
REGISTER_KERNEL_BUILDER(Name("SyncbnNorm").Device(DEVICE_CPU), NormOp);

}  // namespace syncbn

// The board, for Python to read, and how many places it has.
extern "C" double* syncbn_board(int64_t* places) {
  *places = syncbn::kPlaces;
  return &syncbn::board[0][0];
}

// The kernels as TensorFlow operations on the CPU.
//
// Built for the TensorFlow and the processor at hand by library.py. The operations are cheap to start
// (no Python, no thread hop: IsExpensive is false) and use TensorFlow's intra-op threads. Work is cut
// by the number of threads alone and partial sums are added in order, so results repeat bit by bit.

#include <vector>

#include "kernels.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/lib/core/threadpool.h"

namespace syncbn {

namespace shape_inference = tensorflow::shape_inference;
using shape_inference::InferenceContext;

namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

// Below so many values a thread costs more than it saves.
constexpr int64_t kValuesPerThread = 1 << 16;

template <typename Value>
const Value* input_data(OpKernelContext* context, int index) {
  return context->input(index).flat<Value>().data();
}

class ChannelOp : public OpKernel {
 public:
  explicit ChannelOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("axis", &axis_));
  }
  bool IsExpensive() override { return false; }

 protected:
  Planes planes(const Tensor& x) const {
    Planes p{1, x.dim_size(axis_), 1};
    for (int i = 0; i < axis_; ++i) p.outer *= x.dim_size(i);
    for (int i = axis_ + 1; i < x.dims(); ++i) p.inner *= x.dim_size(i);
    return p;
  }

  // Number of parts the outer positions of `p` are cut into.
  static int64_t parts(OpKernelContext* context, Planes p) {
    const int64_t threads = context->device()->tensorflow_cpu_worker_threads()->num_threads;
    return std::max<int64_t>(1, std::min({threads, p.outer, p.size() / kValuesPerThread}));
  }

  // Calls work(part, offset, planes) for each part, on as many threads.
  template <typename Work>
  static void in_parts(OpKernelContext* context, Planes p, int64_t number, const Work& work) {
    const auto one = [&](int64_t part) {
      const int64_t begin = p.outer * part / number, end = p.outer * (part + 1) / number;
      work(part, begin * p.stride(), p.part(end - begin));
    };
    if (number == 1) return one(0);
    auto* workers = context->device()->tensorflow_cpu_worker_threads()->workers;
    workers->ParallelFor(
        number, tensorflow::thread::ThreadPool::SchedulingParams::Fixed(1),
        [&](int64_t begin, int64_t end) {
          for (int64_t part = begin; part < end; ++part) one(part);
        });
  }

  // Two sums by channel, (2, C): sums(offset, planes, r, q) adds those of one part.
  template <typename Sums>
  static std::vector<double> total(OpKernelContext* context, Planes p, const Sums& sums) {
    const int64_t number = parts(context, p), length = 2 * p.channels;
    std::vector<double> partial(number * length);
    in_parts(context, p, number, [&](int64_t part, int64_t offset, Planes piece) {
      double* r = &partial[part * length];
      sums(offset, piece, r, r + p.channels);
    });
    for (int64_t part = 1; part < number; ++part)
      for (int64_t i = 0; i < length; ++i) partial[i] += partial[part * length + i];
    partial.resize(length);
    return partial;
  }

 private:
  int axis_;
};

template <typename In>
class LocalSumsOp : public ChannelOp {
 public:
  using ChannelOp::ChannelOp;

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    const Planes p = planes(input);
    const In* x = input_data<In>(context, 0);
    std::vector<double> pivot(p.channels);
    choose_pivot(x, p, pivot.data());
    const auto sums = total(context, p, [&](int64_t offset, Planes piece, double* r, double* q) {
      local_sums(x + offset, piece, pivot.data(), r, q);
    });
    Tensor* wire;
    OP_REQUIRES_OK(context, context->allocate_output(0, {4 * p.channels + 2}, &wire));
    pack(p.outer * p.inner, pivot.data(), sums.data(), sums.data() + p.channels, p.channels,
         wire->flat<double>().data());
  }
};

template <typename In>
class NormalizeOp : public ChannelOp {
 public:
  using ChannelOp::ChannelOp;
  using T = typename ComputeType<In>::type;

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    const Planes p = planes(input);
    const auto options = context->input(6).flat<double>();
    const double epsilon = options(0), momentum = options(1);
    const bool bessel_correction = options(2) != 0;

    Tensor *output, *joined, *next_mean, *next_variance;
    OP_REQUIRES_OK(context, context->allocate_output(0, input.shape(), &output));
    OP_REQUIRES_OK(context, context->allocate_output(1, {3 * p.channels + 1}, &joined));
    OP_REQUIRES_OK(context, context->allocate_output(2, {p.channels}, &next_mean));
    OP_REQUIRES_OK(context, context->allocate_output(3, {p.channels}, &next_variance));

    double* moments = joined->flat<double>().data();
    merge(context->input(1).flat<double>().data(), p.channels, moments);
    const double count = moments[0], *mean = moments + 1, *variance = mean + p.channels;
    std::vector<double> target(variance, variance + p.channels);
    if (bessel_correction && count > 1)
      for (double& value : target) value *= count / (count - 1);
    const double kept = count > 0 ? momentum : 1.0;
    move(input_data<T>(context, 4), mean, kept, p.channels, next_mean->flat<T>().data());
    move(input_data<T>(context, 5), target.data(), kept, p.channels,
         next_variance->flat<T>().data());

    const auto terms = Terms<T>::of_normalization(
        moments, p.channels, epsilon, input_data<T>(context, 2), input_data<T>(context, 3));
    const In* x = input_data<In>(context, 0);
    In* y = output->flat<In>().data();
    in_parts(context, p, parts(context, p), [&](int64_t, int64_t offset, Planes piece) {
      normalize(x + offset, piece, terms, y + offset);
    });
  }
};

template <typename In>
class GradientSumsOp : public ChannelOp {
 public:
  using ChannelOp::ChannelOp;
  using T = typename ComputeType<In>::type;

  void Compute(OpKernelContext* context) override {
    const Planes p = planes(context->input(1));
    const In *g = input_data<In>(context, 0), *x = input_data<In>(context, 1);
    const double* moments = input_data<double>(context, 2);
    const double *mean = moments + 1, *variance = mean + p.channels;
    const T* scale = input_data<T>(context, 3);
    const double epsilon = input_data<double>(context, 4)[0];

    const auto sums = total(context, p, [&](int64_t offset, Planes piece, double* r, double* q) {
      local_gradient_sums(g + offset, x + offset, piece, mean, r, q);
    });
    Tensor *wire, *towards_scale, *towards_offset;
    OP_REQUIRES_OK(context, context->allocate_output(0, {2 * p.channels}, &wire));
    OP_REQUIRES_OK(context, context->allocate_output(1, {p.channels}, &towards_scale));
    OP_REQUIRES_OK(context, context->allocate_output(2, {p.channels}, &towards_offset));
    auto shared = wire->flat<double>();
    auto of_scale = towards_scale->flat<T>(), of_offset = towards_offset->flat<T>();
    for (int64_t c = 0; c < p.channels; ++c) {
      // The sums were taken about the mean rounded to T; the rest of it is the same for all values.
      const double first = sums[c];
      const double second = sums[p.channels + c] - low_part<T>(moments, p.channels, c) * first;
      shared(c) = scale[c] * first;
      shared(p.channels + c) = scale[c] * second;
      of_scale(c) = static_cast<T>(second / std::sqrt(variance[c] + epsilon));
      of_offset(c) = static_cast<T>(first);
    }
  }
};

template <typename In>
class InputGradientOp : public ChannelOp {
 public:
  using ChannelOp::ChannelOp;
  using T = typename ComputeType<In>::type;

  void Compute(OpKernelContext* context) override {
    const Planes p = planes(context->input(1));
    const In *g = input_data<In>(context, 0), *x = input_data<In>(context, 1);
    const auto terms = Terms<T>::of_gradient(
        input_data<double>(context, 2), p.channels, input_data<double>(context, 5)[0],
        input_data<T>(context, 3), input_data<double>(context, 4));
    // In the memory of g where nobody else needs it: one stream less, and one tensor less.
    Tensor* output;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output(
                                {0}, 0, context->input(1).shape(), &output));
    In* dx = output->flat<In>().data();
    in_parts(context, p, parts(context, p), [&](int64_t, int64_t offset, Planes piece) {
      input_gradient(g + offset, x + offset, piece, terms, dx + offset);
    });
  }
};

}  // namespace

// Shapes of small outputs follow from C at run time; Python sets them where graphs need them.
REGISTER_OP("SyncbnLocalSums")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("axis: int")
    .Input("x: T")
    .Output("wire: double")
    .SetShapeFn(shape_inference::UnknownShape);

REGISTER_OP("SyncbnNormalize")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Compute: {float, double}")
    .Attr("axis: int")
    .Input("x: T")
    .Input("wire: double")
    .Input("scale: Compute")
    .Input("offset: Compute")
    .Input("moving_mean: Compute")
    .Input("moving_variance: Compute")
    .Input("options: double")
    .Output("y: T")
    .Output("moments: double")
    .Output("next_mean: Compute")
    .Output("next_variance: Compute")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->input(0));
      context->set_output(1, context->Vector(InferenceContext::kUnknownDim));
      context->set_output(2, context->input(4));
      context->set_output(3, context->input(5));
      return absl::OkStatus();
    });

REGISTER_OP("SyncbnGradientSums")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Compute: {float, double}")
    .Attr("axis: int")
    .Input("gradient: T")
    .Input("x: T")
    .Input("moments: double")
    .Input("scale: Compute")
    .Input("options: double")
    .Output("wire: double")
    .Output("towards_scale: Compute")
    .Output("towards_offset: Compute")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->Vector(InferenceContext::kUnknownDim));
      context->set_output(1, context->input(3));
      context->set_output(2, context->input(3));
      return absl::OkStatus();
    });

REGISTER_OP("SyncbnInputGradient")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Compute: {float, double}")
    .Attr("axis: int")
    .Input("gradient: T")
    .Input("x: T")
    .Input("moments: double")
    .Input("scale: Compute")
    .Input("wire: double")
    .Input("options: double")
    .Output("towards_x: T")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->input(1));
      return absl::OkStatus();
    });

#define REGISTER(In)                                                                       \
  REGISTER_KERNEL_BUILDER(                                                                 \
      Name("SyncbnLocalSums").Device(DEVICE_CPU).TypeConstraint<In>("T"), LocalSumsOp<In>); \
  REGISTER_KERNEL_BUILDER(                                                                 \
      Name("SyncbnNormalize").Device(DEVICE_CPU).TypeConstraint<In>("T"), NormalizeOp<In>); \
  REGISTER_KERNEL_BUILDER(                                                                 \
      Name("SyncbnGradientSums").Device(DEVICE_CPU).TypeConstraint<In>("T"),               \
      GradientSumsOp<In>);                                                                 \
  REGISTER_KERNEL_BUILDER(                                                                 \
      Name("SyncbnInputGradient").Device(DEVICE_CPU).TypeConstraint<In>("T"),              \
      InputGradientOp<In>)

REGISTER(Eigen::half);
REGISTER(Eigen::bfloat16);
REGISTER(float);
REGISTER(double);

}  // namespace syncbn

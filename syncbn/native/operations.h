// RAII wrappers of TensorFlow's C API for operations.

#ifndef SYNCBN_NATIVE_OPERATIONS_H_
#define SYNCBN_NATIVE_OPERATIONS_H_

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <new>

#include "tensorflow_api.h"

namespace syncbn {

// A TF_Status.
class Status {
 public:
  Status() : status_(tensorflow.NewStatus()) {}
  ~Status() { tensorflow.DeleteStatus(status_); }
  Status(const Status&) = delete;
  Status& operator=(const Status&) = delete;

  operator TF_Status*() { return status_; }
  bool ok() const { return tensorflow.GetCode(status_) == kOk; }

  [[gnu::format(printf, 3, 4)]] void set(Code code, const char* format, ...) {
    char message[512];
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof(message), format, values);
    va_end(values);
    tensorflow.SetStatus(status_, code, message);
  }

 private:
  TF_Status* status_;
};

// A handle to a tensor; the memory belongs to the operation or the graph.
class Tensor {
 public:
  explicit Tensor(TF_Tensor* tensor) : tensor_(tensor) {}
  ~Tensor() {
    if (tensor_ != nullptr) tensorflow.DeleteTensor(tensor_);
  }
  Tensor(Tensor&& other) : tensor_(other.tensor_) { other.tensor_ = nullptr; }
  Tensor& operator=(Tensor&&) = delete;

  TF_Tensor* get() const { return tensor_; }
  template <typename Value = void>
  Value* data() const {
    return static_cast<Value*>(tensorflow.TensorData(tensor_));
  }
  DataType type() const { return tensorflow.TensorType(tensor_); }
  int64_t size() const { return tensorflow.TensorElementCount(tensor_); }
  int rank() const { return tensorflow.NumDims(tensor_); }
  int64_t dim(int axis) const { return tensorflow.Dim(tensor_, axis); }

 private:
  TF_Tensor* tensor_;
};

constexpr int kMaxDims = 16;

struct Shape {
  int64_t dims[kMaxDims];
  int rank = 0;

  static Shape vector(int64_t size) { return {{size}, 1}; }
  static Shape of(const Tensor& tensor) {
    Shape shape{{}, tensor.rank() < kMaxDims ? tensor.rank() : kMaxDims};
    for (int i = 0; i < shape.rank; ++i) shape.dims[i] = tensor.dim(i);
    return shape;
  }
  int64_t size() const {
    int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= dims[i];
    return product;
  }
};

// One run of an operation. After an error tensors are null: check `ok` before accessing them. The
// destructor reports the error to TensorFlow.
class Run {
 public:
  explicit Run(TF_OpKernelContext* context) : context_(context) {}
  ~Run() {
    if (!status.ok()) tensorflow.OpKernelContext_Failure(context_, status);
  }

  bool ok() const { return status.ok(); }
  int inputs() const { return tensorflow.NumInputs(context_); }

  Tensor input(int index) {
    TF_Tensor* tensor = nullptr;
    if (ok()) tensorflow.GetInput(context_, index, &tensor, status);
    return Tensor(tensor);
  }

  Tensor output(int index, DataType type, int64_t value_size, const Shape& shape) {
    if (!ok()) return Tensor(nullptr);
    return Tensor(tensorflow.AllocateOutput(context_, index, type, shape.dims, shape.rank,
                                            shape.size() * value_size, status));
  }

  // An output in the memory of input `index` if nothing else uses that. There must be no handle to
  // the input yet.
  Tensor output_in_place_of(int index, int output, const Shape& shape) {
    if (!ok()) return Tensor(nullptr);
    int forwarded;
    return Tensor(tensorflow.ForwardInputOrAllocateOutput(context_, &index, 1, output, shape.dims,
                                                          shape.rank, &forwarded, status));
  }

  void set_output(int index, const Tensor& tensor) {
    if (ok()) tensorflow.SetOutput(context_, index, tensor.get(), status);
  }

  Status status;

 private:
  TF_OpKernelContext* context_;
};

// The construction of an operation's state from its attributes; the destructor reports the error to
// TensorFlow.
class Construction {
 public:
  explicit Construction(TF_OpKernelConstruction* context) : context_(context) {}
  ~Construction() {
    if (!status.ok()) tensorflow.OpKernelConstruction_Failure(context_, status);
  }

  int64_t integer(const char* name) {
    int64_t value = 0;
    if (status.ok()) tensorflow.OpKernelConstruction_GetAttrInt64(context_, name, &value, status);
    return value;
  }
  bool boolean(const char* name) {
    unsigned char value = 0;
    if (status.ok()) tensorflow.OpKernelConstruction_GetAttrBool(context_, name, &value, status);
    return value != 0;
  }
  DataType type(const char* name) {
    DataType value = kFloat;
    if (status.ok()) tensorflow.OpKernelConstruction_GetAttrType(context_, name, &value, status);
    return value;
  }

  Status status;

 private:
  TF_OpKernelConstruction* context_;
};

constexpr int kMaxNames = 9;

// The names of an operation's attributes, inputs or outputs, in TensorFlow's notation.
struct Names {
  const char* names[kMaxNames] = {};
};

struct Definition {
  const char* name;
  Names attributes, inputs, outputs;
  InferShapes infer_shapes;
  bool stateful;  // runs in program order, and is never pruned
  Create create;
  Compute compute;
  Delete remove;
};

// State is constructed by State(Construction&) and passed to compute(const State&, Run&).
template <typename State, void (*compute)(const State&, Run&)>
Definition define(const char* name, Names attributes, Names inputs, Names outputs,
                  InferShapes infer_shapes, bool stateful = false) {
  return {name,
          attributes,
          inputs,
          outputs,
          infer_shapes,
          stateful,
          [](TF_OpKernelConstruction* context) -> void* {
            Construction construction(context);
            return new (malloc(sizeof(State))) State(construction);
          },
          [](void* state, TF_OpKernelContext* context) {
            Run run(context);
            compute(*static_cast<const State*>(state), run);
          },
          free};
}

// Registers an operation with TensorFlow, for the CPU.
void register_operation(const Definition& definition);

// Sets the shape of an output to that of input number `input`, or leaves it unknown.
constexpr int kUnknown = -1;
void set_output_shape(TF_ShapeInferenceContext* context, int output, int input, TF_Status* status);

// A shape function with the number of an input for each output.
template <int... inputs>
void shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  tensorflow.ShapeInferenceContextSetUnknownShape(context, status);
  int output = 0;
  (set_output_shape(context, output++, inputs, status), ...);
}

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_OPERATIONS_H_

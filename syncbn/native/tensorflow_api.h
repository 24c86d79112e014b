// The part of TensorFlow's C API that the operations use.
//
// Declared here instead of included, and resolved at load time instead of linked: the functions and
// constants below are part of TensorFlow's stable C API, so one library works with all versions and
// is built without TensorFlow.

#ifndef SYNCBN_NATIVE_TENSORFLOW_API_H_
#define SYNCBN_NATIVE_TENSORFLOW_API_H_

#include <stddef.h>
#include <stdint.h>

struct TF_KernelBuilder;
struct TF_OpDefinitionBuilder;
struct TF_OpKernelConstruction;
struct TF_OpKernelContext;
struct TF_ShapeHandle;
struct TF_ShapeInferenceContext;
struct TF_Status;
struct TF_Tensor;

namespace syncbn {

enum DataType : int {
  kFloat = 1,
  kDouble = 2,
  kInt32 = 3,
  kUInt8 = 4,
  kInt16 = 5,
  kInt8 = 6,
  kInt64 = 9,
  kBFloat16 = 14,
  kUInt16 = 17,
  kHalf = 19,
  kUInt32 = 22,
  kUInt64 = 23
};
enum Code : int { kOk = 0, kUnknownError = 2, kInvalidArgument = 3, kUnavailable = 14 };

using Create = void* (*)(TF_OpKernelConstruction*);
using Compute = void (*)(void*, TF_OpKernelContext*);
using Delete = void (*)(void*);
using InferShapes = void (*)(TF_ShapeInferenceContext*, TF_Status*);

// Result, name without the prefix TF_, parameters.
#define SYNCBN_TENSORFLOW_FUNCTIONS(X)                                                          \
  X(TF_Status*, NewStatus, ())                                                                  \
  X(void, DeleteStatus, (TF_Status*))                                                           \
  X(void, SetStatus, (TF_Status*, Code, const char*))                                           \
  X(Code, GetCode, (const TF_Status*))                                                          \
  X(void, DeleteTensor, (TF_Tensor*))                                                           \
  X(DataType, TensorType, (const TF_Tensor*))                                                   \
  X(int, NumDims, (const TF_Tensor*))                                                           \
  X(int64_t, Dim, (const TF_Tensor*, int))                                                      \
  X(void*, TensorData, (const TF_Tensor*))                                                      \
  X(int64_t, TensorElementCount, (const TF_Tensor*))                                            \
  X(int, NumInputs, (TF_OpKernelContext*))                                                      \
  X(void, GetInput, (TF_OpKernelContext*, int, TF_Tensor**, TF_Status*))                        \
  X(void, SetOutput, (TF_OpKernelContext*, int, const TF_Tensor*, TF_Status*))                  \
  X(TF_Tensor*, AllocateOutput,                                                                 \
    (TF_OpKernelContext*, int, DataType, const int64_t*, int, size_t, TF_Status*))              \
  X(TF_Tensor*, ForwardInputOrAllocateOutput,                                                   \
    (TF_OpKernelContext*, const int*, int, int, const int64_t*, int, int*, TF_Status*))         \
  X(void, OpKernelContext_Failure, (TF_OpKernelContext*, TF_Status*))                           \
  X(void, OpKernelConstruction_Failure, (TF_OpKernelConstruction*, TF_Status*))                 \
  X(void, OpKernelConstruction_GetAttrType,                                                     \
    (TF_OpKernelConstruction*, const char*, DataType*, TF_Status*))                             \
  X(void, OpKernelConstruction_GetAttrInt64,                                                    \
    (TF_OpKernelConstruction*, const char*, int64_t*, TF_Status*))                              \
  X(void, OpKernelConstruction_GetAttrBool,                                                     \
    (TF_OpKernelConstruction*, const char*, unsigned char*, TF_Status*))                        \
  X(TF_KernelBuilder*, NewKernelBuilder, (const char*, const char*, Create, Compute, Delete))   \
  X(void, RegisterKernelBuilder, (const char*, TF_KernelBuilder*, TF_Status*))                  \
  X(TF_OpDefinitionBuilder*, NewOpDefinitionBuilder, (const char*))                             \
  X(void, OpDefinitionBuilderAddAttr, (TF_OpDefinitionBuilder*, const char*))                   \
  X(void, OpDefinitionBuilderAddInput, (TF_OpDefinitionBuilder*, const char*))                  \
  X(void, OpDefinitionBuilderAddOutput, (TF_OpDefinitionBuilder*, const char*))                 \
  X(void, OpDefinitionBuilderSetIsStateful, (TF_OpDefinitionBuilder*, bool))                    \
  X(void, OpDefinitionBuilderSetShapeInferenceFunction, (TF_OpDefinitionBuilder*, InferShapes)) \
  X(void, RegisterOpDefinition, (TF_OpDefinitionBuilder*, TF_Status*))                          \
  X(TF_ShapeHandle*, NewShapeHandle, ())                                                        \
  X(void, DeleteShapeHandle, (TF_ShapeHandle*))                                                 \
  X(int64_t, ShapeInferenceContextNumInputs, (TF_ShapeInferenceContext*))                       \
  X(void, ShapeInferenceContextGetInput,                                                        \
    (TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*))                              \
  X(void, ShapeInferenceContextSetOutput,                                                       \
    (TF_ShapeInferenceContext*, int, TF_ShapeHandle*, TF_Status*))                              \
  X(void, ShapeInferenceContextSetUnknownShape, (TF_ShapeInferenceContext*, TF_Status*))

struct TensorFlow {
#define SYNCBN_MEMBER(Result, name, parameters) Result(*name) parameters;
  SYNCBN_TENSORFLOW_FUNCTIONS(SYNCBN_MEMBER)
#undef SYNCBN_MEMBER
};

extern TensorFlow tensorflow;

// Resolves the functions in the TensorFlow of this process. False if one is missing, with its name
// in *missing, or if TensorFlow is not loaded, with null in *missing.
bool find_tensorflow(const char** missing);

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_TENSORFLOW_API_H_

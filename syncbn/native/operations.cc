#include "operations.h"

namespace syncbn {

void register_operation(const Definition& definition) {
  TF_OpDefinitionBuilder* builder = tensorflow.NewOpDefinitionBuilder(definition.name);
  for (const char* name : definition.attributes.names)
    if (name != nullptr) tensorflow.OpDefinitionBuilderAddAttr(builder, name);
  for (const char* name : definition.inputs.names)
    if (name != nullptr) tensorflow.OpDefinitionBuilderAddInput(builder, name);
  for (const char* name : definition.outputs.names)
    if (name != nullptr) tensorflow.OpDefinitionBuilderAddOutput(builder, name);
  tensorflow.OpDefinitionBuilderSetShapeInferenceFunction(builder, definition.infer_shapes);
  tensorflow.OpDefinitionBuilderSetIsStateful(builder, definition.stateful);
  Status status;
  tensorflow.RegisterOpDefinition(builder, status);  // takes ownership of the builder
  TF_KernelBuilder* kernel = tensorflow.NewKernelBuilder(definition.name, "CPU", definition.create,
                                                         definition.compute, definition.remove);
  if (status.ok()) tensorflow.RegisterKernelBuilder(definition.name, kernel, status);
  // Python detects operations whose registration failed.
}

void set_output_shape(TF_ShapeInferenceContext* context, int output, int input, TF_Status* status) {
  if (input == kUnknown || tensorflow.GetCode(status) != kOk) return;
  TF_ShapeHandle* shape = tensorflow.NewShapeHandle();
  tensorflow.ShapeInferenceContextGetInput(context, input, shape, status);
  if (tensorflow.GetCode(status) == kOk)
    tensorflow.ShapeInferenceContextSetOutput(context, output, shape, status);
  tensorflow.DeleteShapeHandle(shape);
}

}  // namespace syncbn

// Declarations shared by the parts of the library, and the export of functions to Python.

#ifndef SYNCBN_NATIVE_LIBRARY_H_
#define SYNCBN_NATIVE_LIBRARY_H_

#include "arithmetic.h"
#include "tensorflow_api.h"

#define SYNCBN_EXPORT extern "C" __attribute__((visibility("default")))

namespace syncbn {

// The build of the arithmetic for this processor; valid after `syncbn_start` has succeeded.
const Arithmetic& chosen_arithmetic();
const Kernels& kernels_of(DataType type);

void register_layer();
void register_statistics();
void register_mpi();
void register_exchange();
void register_telemetry();

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_LIBRARY_H_

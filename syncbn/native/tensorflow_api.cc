#include "tensorflow_api.h"

#include <dlfcn.h>

namespace syncbn {

TensorFlow tensorflow;

bool find_tensorflow(const char** missing) {
  *missing = nullptr;
  // TensorFlow's Python package has loaded it, but its symbols are not in the global scope.
  void* library = dlopen("libtensorflow_framework.so.2", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return false;
  bool complete = true;
#define SYNCBN_FIND(Result, name, parameters)                                            \
  tensorflow.name = reinterpret_cast<Result(*) parameters>(dlsym(library, "TF_" #name)); \
  if (tensorflow.name == nullptr) complete = false, *missing = "TF_" #name;
  SYNCBN_TENSORFLOW_FUNCTIONS(SYNCBN_FIND)
#undef SYNCBN_FIND
  dlclose(library);  // the package keeps it loaded
  return complete;
}

}  // namespace syncbn

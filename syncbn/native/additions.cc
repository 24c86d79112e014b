#include "additions.h"

#include "tensorflow_api.h"

namespace syncbn {
namespace {

template <typename Value>
void add(void* total, const void* first, const void* second, int64_t count) {
  Value* to = static_cast<Value*>(total);
  const Value* a = static_cast<const Value*>(first);
  const Value* b = static_cast<const Value*>(second);
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Value>(a[i] + b[i]);
}

template <typename Value>
constexpr Addition addition = {sizeof(Value), add<Value>};

}  // namespace

const Addition* addition_of(int type) {
  switch (type) {
    case kFloat:
      return &addition<float>;
    case kDouble:
      return &addition<double>;
    // Signed integers wrap around like unsigned ones.
    case kInt8:
    case kUInt8:
      return &addition<uint8_t>;
    case kInt16:
    case kUInt16:
      return &addition<uint16_t>;
    case kInt32:
    case kUInt32:
      return &addition<uint32_t>;
    case kInt64:
    case kUInt64:
      return &addition<uint64_t>;
    default:
      return nullptr;
  }
}

}  // namespace syncbn

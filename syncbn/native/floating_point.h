// The floating-point mode of a thread: rounding, and flushing of denormals to zero.

#ifndef SYNCBN_NATIVE_FLOATING_POINT_H_
#define SYNCBN_NATIVE_FLOATING_POINT_H_

#include <stdint.h>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace syncbn {

// The mode of the thread that creates it; `adopt` sets it in another thread, or again in this one.
struct FloatingPoint {
#if defined(__SSE__)
  unsigned mode = _mm_getcsr();
  void adopt() const { _mm_setcsr(mode); }
  static void set_default() { _mm_setcsr(0x1f80); }
#elif defined(__aarch64__)
  uint64_t mode;
  FloatingPoint() { asm volatile("mrs %0, fpcr" : "=r"(mode)); }
  void adopt() const { asm volatile("msr fpcr, %0" : : "r"(mode)); }
  static void set_default() { asm volatile("msr fpcr, %0" : : "r"(uint64_t{0})); }
#else
  void adopt() const {}
  static void set_default() {}
#endif
};

// IEEE 754's default mode during its lifetime.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() { FloatingPoint::set_default(); }
  ~DefaultFloatingPoint() { before_.adopt(); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
  const FloatingPoint before_{};
};

}  // namespace syncbn

#endif  // SYNCBN_NATIVE_FLOATING_POINT_H_

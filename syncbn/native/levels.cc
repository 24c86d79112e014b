#include "levels.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace syncbn {

#if defined(__x86_64__)

extern const Arithmetic x86_64_v2, x86_64_v3, x86_64_v4;

namespace {

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, 0, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }

// Whether the operating system saves these vector register states (XCR0).
bool saved(unsigned parts) {
  if (!has(cpuid(1).c, bit_OSXSAVE)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return has(low, parts);
}

constexpr unsigned kLahf = 1 << 0, kLzcnt = 1 << 5;               // of leaf 0x80000001
constexpr unsigned kSse = 1 << 1, kAvx = 1 << 2, kMask = 7 << 5;  // of XCR0

// The levels of the x86-64 psABI.
bool is_v2() {
  return has(cpuid(1).c,
             bit_SSE3 | bit_SSSE3 | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT | bit_CMPXCHG16B) &&
         has(cpuid(0x80000001).c, kLahf);
}

bool is_v3() {
  return is_v2() && saved(kSse | kAvx) &&
         has(cpuid(1).c, bit_AVX | bit_F16C | bit_FMA | bit_MOVBE) &&
         has(cpuid(7).b, bit_AVX2 | bit_BMI | bit_BMI2) && has(cpuid(0x80000001).c, kLzcnt);
}

bool is_v4() {
  return is_v3() && saved(kSse | kAvx | kMask) &&
         has(cpuid(7).b, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL);
}

const Level kLevels[] = {{"x86-64-v2", &x86_64_v2, is_v2},
                         {"x86-64-v3", &x86_64_v3, is_v3},
                         {"x86-64-v4", &x86_64_v4, is_v4}};

}  // namespace

#else

extern const Arithmetic baseline;

namespace {

// NEON is part of aarch64.
#if defined(__aarch64__)
const Level kLevels[] = {{"aarch64", &baseline, [] { return true; }}};
#else
const Level kLevels[] = {{"baseline", &baseline, [] { return true; }}};
#endif

}  // namespace

#endif

const Level* levels(int* count) {
  *count = sizeof(kLevels) / sizeof(kLevels[0]);
  return kLevels;
}

const Level* choose_level(const char* name, char* message, int message_size) {
  const bool unnamed = name == nullptr || *name == '\0';
  const Level *best = nullptr, *named = nullptr;
  char names[128] = "";
  for (const Level& level : kLevels) {
    if (level.supported()) best = &level;
    if (!unnamed && strcmp(level.name, name) == 0) named = &level;
    const size_t used = strlen(names);
    snprintf(names + used, sizeof(names) - used, "%s%s", used ? ", " : "", level.name);
  }
  if (best == nullptr)
    snprintf(message, message_size, "this processor is below %s, the least that the kernels need",
             kLevels[0].name);
  else if (unnamed)
    return best;
  else if (named == nullptr)
    snprintf(message, message_size, "SYNCBN_MARCH must be one of %s. Received: '%s'", names, name);
  else if (!named->supported())
    snprintf(message, message_size,
             "SYNCBN_MARCH=%s asks for instructions that this processor lacks: it has those of %s",
             name, best->name);
  else
    return named;
  return nullptr;
}

}  // namespace syncbn

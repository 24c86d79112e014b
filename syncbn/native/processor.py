"""Which instructions the processor has, and whether kernels for a named one can run on it."""

import platform
from pathlib import Path

# What each level of the x86-64 psABI adds to those before it, as /proc/cpuinfo spells it.
_LEVELS = {
    "x86-64-v2": "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3",
    "x86-64-v3": "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "x86-64-v4": "avx512bw avx512cd avx512dq avx512f avx512vl",
}


def instructions() -> str:
    """The instruction sets of this processor in one line, which `-march=native` follows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def lacking(march: str, processor: str) -> list[str]:
    """What `processor`, a line of `instructions`, lacks to run code compiled with `-march=MARCH`.

    Only the levels of x86-64 are known; of other names the compiler's user answers for.
    """
    levels = list(_LEVELS)
    if march not in levels:
        return []
    needed = " ".join(_LEVELS[level] for level in levels[: levels.index(march) + 1]).split()
    return sorted(set(needed) - set(processor.split()))

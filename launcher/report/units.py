"""Numbers with units, for people."""

_PREFIXES = ("", "k", "M", "G", "T")


def seconds_text(seconds: float) -> str:
    """`83 ms`, `2.1 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def bytes_text(size: float) -> str:
    """`265 kB`, in powers of a thousand."""
    power = 0
    while size >= 999.5 and power < len(_PREFIXES) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.3g} {_PREFIXES[power]}B"


def percent(share: float) -> str:
    """`7%`, and `0.4%` instead of 0%."""
    return f"{share:.0%}" if share >= 0.01 or share <= 0 else f"{share:.1%}"

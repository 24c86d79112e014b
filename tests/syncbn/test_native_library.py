"""Which library of kernels is taken, and what a processor that cannot run it is told."""

import sys
from pathlib import Path

import pytest

from syncbn import native
from syncbn.native import processor
from syncbn.native.library import BuildError, _fingerprint, library

_OLD = "flags : cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3 avx f16c xsave"  # Ivy Bridge


@pytest.mark.parametrize(
    ("march", "missing"),
    [
        ("x86-64-v2", []),
        ("x86-64-v3", ["abm", "avx2", "bmi1", "bmi2", "fma", "movbe"]),
        ("native", []),
        ("haswell", []),  # not a level: whoever compiled for it knows
    ],
)
def test_a_level_needs_all_of_its_instructions(march: str, missing: list[str]) -> None:
    assert processor.lacking(march, _OLD) == missing


def test_an_old_processor_does_without_the_kernels_of_an_image_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SYNCBN_MARCH", "x86-64-v3")
    monkeypatch.setattr(processor, "instructions", lambda: _OLD)
    native.operations.cache_clear()
    try:
        assert native.operations() is None
    finally:
        native.operations.cache_clear()
    assert "made for x86-64-v3, and this processor has no abm, avx2" in caplog.text


def test_a_library_beside_the_packages_is_taken_where_nothing_can_be_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in the image: no compiler, and the user may not write there."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SYNCBN_MARCH", "x86-64")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler"):
        library()
    beside = tmp_path / "lib" / "syncbn" / f"syncbn-{_fingerprint()}.so"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert library() == beside

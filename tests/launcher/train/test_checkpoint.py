"""Checkpoints on a real disk: whole or absent, and known when damaged."""

import os
import resource
import stat
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from launcher.atomic import WriteError
from launcher.errors import UsageError
from launcher.train.checkpoint import Checkpoint, CheckpointStore, check_fits


class Variable:
    def __init__(self, path: str, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape


def _checkpoint(step: int) -> Checkpoint:
    arrays: list[np.ndarray] = [
        np.full((3, 2), step, np.float32),
        np.array(7, np.int64),
        np.array([1.5, -2.0], ml_dtypes.bfloat16),
        np.array([True, False]),
    ]
    return Checkpoint(step, {"position": {"epoch": 1}, "variables": ["a", "b", "c", "d"]}, arrays)


def test_a_checkpoint_is_restored_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=2)
    saved = _checkpoint(12)
    path = store.save(saved)
    loaded, warnings = store.latest()
    assert loaded is not None
    assert (loaded.step, loaded.path, warnings) == (12, path, [])
    assert loaded.meta["position"] == {"epoch": 1}
    for before, after in zip(saved.arrays, loaded.arrays, strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert before.tobytes() == after.tobytes()


def test_the_latest_checkpoints_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (5, 90, 100, 1000):
        store.save(_checkpoint(step))
    assert [path.name for path in store.paths()] == ["step-0000000100.npz", "step-0000001000.npz"]


@pytest.mark.parametrize("damage", ["one bit", "cut short", "empty", "no zip"])
def test_a_damaged_file_is_skipped_with_a_warning(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(_checkpoint(1))
    last = store.save(_checkpoint(2))
    content = bytearray(last.read_bytes())
    if damage == "one bit":
        content[content.index(np.full(6, 2, np.float32).tobytes()) + 5] ^= 1
    elif damage == "cut short":
        del content[len(content) // 2 :]
    elif damage == "empty":
        content.clear()
    else:
        content[:] = b"something else"
    last.write_bytes(content)
    loaded, warnings = store.latest()
    assert loaded is not None
    assert loaded.step == 1
    assert len(warnings) == 1
    assert str(last) in warnings[0]


def test_any_changed_byte_is_detected_or_harmless(tmp_path: Path) -> None:
    """Bytes that no checksum covers (dates, flags of the zip) must not change what is read."""
    store = CheckpointStore(tmp_path, keep=3)
    store.save(_checkpoint(1))
    last = store.save(_checkpoint(2))
    content = last.read_bytes()
    sound = _read_back(store)
    found = 0
    for place in range(len(content)):
        last.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
        read = _read_back(store)
        if read[0] == 1:
            found += 1
        else:
            assert read == sound, f"byte {place} of {len(content)} differs, and nobody noticed"
    assert found > len(content) / 2


def _read_back(store: CheckpointStore) -> tuple[int, dict[str, Any], list[bytes]]:
    loaded, _ = store.latest()
    assert loaded is not None
    return loaded.step, loaded.meta, [array.tobytes() for array in loaded.arrays]


def test_an_unreadable_file_is_skipped(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(_checkpoint(1))
    (tmp_path / "step-0000000002.npz").mkdir()
    loaded, warnings = store.latest()
    assert loaded is not None
    assert loaded.step == 1
    assert "step-0000000002.npz" in warnings[0]


def test_a_checkpoint_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on the disk before the name is, and the name before `save` returns."""
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        sync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        done.append("name")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    CheckpointStore(tmp_path, keep=1).save(_checkpoint(1))
    assert done == ["content", "name", "directory"]


def test_a_crash_while_writing_preserves_older_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(_checkpoint(1))

    # No file of this process may grow beyond this: the write breaks off in the middle.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(WriteError, match=r"step-0000000002\.npz cannot be .* File too large"):
            store.save(_checkpoint(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    loaded, warnings = store.latest()
    assert loaded is not None
    assert (loaded.step, warnings) == (1, [])
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000000001.npz"]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "nowhere", keep=1).latest() == (None, [])


def test_the_error_for_another_model_names_the_first_difference() -> None:
    ours = [Variable("a", (3, 2)), Variable("b", ()), Variable("c", (2,)), Variable("d", (2,))]
    check_fits(_checkpoint(1), ours)
    with pytest.raises(UsageError, match=r"expected x \(2,\). Received: c \(2,\)"):
        check_fits(_checkpoint(1), [*ours[:2], Variable("x", (2,)), ours[3]])
    with pytest.raises(UsageError, match=r"expected 3 variables\. Received: 4"):
        check_fits(_checkpoint(1), ours[:3])
    torn = _checkpoint(1)
    torn.meta["variables"].pop()
    with pytest.raises(ValueError, match="longer"):
        check_fits(torn, ours)

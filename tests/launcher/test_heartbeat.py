"""The record in which a rank reports its progress."""

import os
import threading
from pathlib import Path

import pytest

from launcher.heartbeat import VARIABLE, Beat, Heartbeat, Phase, decode, encode, read


def test_without_a_path_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    before = os.listdir("/proc/self/fd")
    Heartbeat.from_environment().beat("training", 1, loss=0.5)
    assert os.listdir("/proc/self/fd") == before
    assert list(tmp_path.iterdir()) == []


def test_beats_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "beat"
    monkeypatch.setenv(VARIABLE, str(path))
    assert read(path) is None
    heartbeat = Heartbeat.from_environment()
    heartbeat.beat("training", 7, loss=0.5)
    beat = read(path)
    assert beat is not None
    assert (beat.phase, beat.step, beat.saved, beat.numbers) == ("training", 7, None, {"loss": 0.5})
    heartbeat.beat("training", 8)
    assert read(path) == beat, "not more than five a second"
    heartbeat.beat("saving", 8)
    assert read(path) != beat, "a change of phase always"


def test_a_completed_save_is_reported(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "beat")
    seen = []
    phases: tuple[Phase, ...] = ("training", "saving", "training", "evaluating", "saving", "done")
    for step, phase in enumerate(phases, 3):
        heartbeat.beat(phase, step)
        beat = read(tmp_path / "beat")
        assert beat is not None
        seen.append(beat.saved)
    assert seen == [None, None, 4, 4, 4, 7], "only a save that has ended counts"


def test_an_unwritable_path_does_not_stop_training(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "none" / "beat")
    heartbeat.beat("training", 1)
    (tmp_path / "none").mkdir()
    heartbeat.beat("saving", 1)
    beat = read(tmp_path / "none" / "beat")
    assert beat is not None, "as soon as it can be written it is"
    assert beat.phase == "saving"


def test_numbers_that_do_not_fit_are_omitted() -> None:
    beat = Beat("training", 1, None, 0.0, {f"number_{i:03}": 1.0 for i in range(100)})
    record = encode(beat)
    assert len(record) == 512
    kept = decode(record)
    assert kept is not None
    assert 5 < len(kept.numbers) < 100


def test_a_partial_record_is_no_beat() -> None:
    first = encode(Beat("training", 1, None, 1.0))
    second = encode(Beat("evaluating", 22, None, 2.0))
    for cut in range(1, 511):
        torn = first[:cut] + second[cut:]
        if torn not in (first, second):
            assert decode(torn) is None
    assert decode(b"") is None


def test_reading_while_writing_never_gives_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "beat"
    heartbeat = Heartbeat(path)
    over = threading.Event()

    def write() -> None:
        step = 0
        while not over.is_set():
            step += 1
            heartbeat.beat("training" if step % 2 else "saving", step, twice=2.0 * step)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3000):
            beat = read(path)
            assert beat is None or beat.numbers["twice"] == 2 * (beat.step or 0)
    finally:
        over.set()
        writer.join()


def test_the_file_never_grows(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "beat")
    for step in range(10):
        heartbeat.beat("training" if step % 2 else "saving", step)
    assert os.path.getsize(tmp_path / "beat") == 512

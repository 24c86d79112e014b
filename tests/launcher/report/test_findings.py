"""The findings of the report, each for a run with the measurements that cause it."""

import json
from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.report.findings import Finding, findings
from launcher.report.run import read_run
from launcher.report.units import bytes_text, percent, seconds_text
from tests.launcher.report.runs import Story, write_launcher_journal, write_run


def _of(directory: Path, story: Story) -> dict[str, Finding]:
    return {one.headline: one for one in findings(read_run(write_run(directory, story)))}


def test_a_healthy_run_has_only_good_findings(tmp_path: Path) -> None:
    found = _of(tmp_path, Story())
    assert {one.severity for one in found.values()} == {"good"}
    assert "Held-out accuracy 95.00%" in found["No sign of overfitting"].text
    assert "The ranks are balanced" in found


def test_a_slow_rank_is_named_with_its_numbers(tmp_path: Path) -> None:
    found = _of(tmp_path, Story(ranks=4, slow=(2, 1.4)))
    (headline,) = [one for one in found if "slower" in one]
    # Own time 84 ms per step; the others' are 60, 60 and 58 ms.
    assert headline == "Rank 2 is 40% slower than the median of the others"
    assert "84 ms per step" in found[headline].text
    assert "median of the others is 60 ms" in found[headline].text
    assert found[headline].severity == "bad"


def test_the_share_of_all_reduces_is_reported(tmp_path: Path) -> None:
    found = _of(tmp_path, Story(ranks=2))
    syncbn = found["SyncBN all-reduces take 14% of a step"]
    assert "3 per step" in syncbn.text
    assert "265 kB from each rank" in syncbn.text
    assert "The gradient all-reduce takes 25% of a step" in found


def test_a_single_rank_has_no_finding_on_communication(tmp_path: Path) -> None:
    assert not any("all-reduce" in one for one in _of(tmp_path, Story(ranks=1)))


def test_a_non_finite_loss_is_the_first_finding(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, Story(nan_from=100)))
    first = findings(run)[0]
    assert (first.severity, first.headline) == ("bad", "The loss is not finite")
    assert "From step 100 on" in first.text


def test_waiting_for_input_and_overfitting_are_noted(tmp_path: Path) -> None:
    found = _of(tmp_path, Story(input_share=0.25, overfits=True))
    assert "Ranks wait for input 25% of the time" in found
    assert "Held-out loss rose before the end" in found


def test_restarts_and_failures_quote_the_launcher(tmp_path: Path) -> None:
    run = write_run(tmp_path, Story())
    began = read_run(run).began
    cause = {"class": "killed", "summary": "rank 1 on a was killed by SIGKILL after step 7"}
    write_launcher_journal(
        run,
        {"time": began - 20, "event": "run", "attempt": 0},
        {"time": began - 5, "event": "failed", "attempt": 0, "rank": 1, **cause},
        {"time": began - 4, "event": "restarting", "attempt": 0, "next": 1},
        {"time": began + 9, "event": "done", "attempt": 1, "result": "failed", "cause": cause},
    )
    found = {one.headline: one for one in findings(read_run(run))}
    restart = found["The job was restarted"].text
    assert restart.startswith("Rank 1 on a was killed by SIGKILL after step 7.")
    assert "Training resumed from step 0 5 s later." in restart
    assert found["The job failed"].severity == "bad"


def test_a_truncated_last_line_and_unknown_lines_are_skipped(tmp_path: Path) -> None:
    run = write_run(tmp_path, Story(epochs=1))
    lines = len(read_run(run).lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3}\n[1, 2]\n{"event": "step", "ti')
    assert len(read_run(run).lines) == lines


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run: expected metrics\.jsonl"):
        read_run(tmp_path)


def test_windows_of_another_world_size_do_not_mix(tmp_path: Path) -> None:
    run = write_run(tmp_path, Story(ranks=4))
    small = write_run(tmp_path / "small", Story(ranks=2))
    text = (run / "metrics.jsonl").read_text() + (small / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text)
    read = read_run(run)
    assert read.world_size == 2
    assert len(read.windows) == 6
    assert all(len(json.loads(line)) for line in text.splitlines())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0000042, "4 µs"),
        (0.0832, "83.2 ms"),
        (2.13, "2.1 s"),
        (59.4, "59 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_sizes_and_shares_read_well() -> None:
    assert bytes_text(265_128) == "265 kB"
    assert bytes_text(999.9e3) == "1 MB"
    assert bytes_text(12) == "12 B"
    assert percent(0.234) == "23%"
    assert percent(0.004) == "0.4%"
    assert percent(0) == "0%"

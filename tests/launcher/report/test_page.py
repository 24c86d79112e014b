"""The page itself: whole, self-contained, safe against odd names; bad input is one clear line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import LauncherError
from launcher.report.write import write_report
from tests.launcher.report.runs import Story, write_run

# The XML namespaces of an SVG; nothing is fetched from there.
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_the_page_is_complete_and_needs_no_network(tmp_path: Path) -> None:
    page = write_report([write_run(tmp_path / "run", Story())]).read_text()
    titles = re.findall(r"<h2>([^<]*)</h2>", page)
    assert titles == [
        "Loss",
        "Accuracy",
        "Throughput",
        "Step time by part",
        "Step time by rank",
        "All-reduce latency",
        "Drift of the moving statistics",
        "Time line",
    ]
    assert len(re.findall("<svg", page)) == len(titles)
    assert set(re.findall(r"https?://[^\"'\s<>]+", page)) <= NAMESPACES
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|url\((?!#)", page)
    ids = re.findall(r'\bid="(\w+)"', page)
    clips = [one for one in ids if re.fullmatch(r"[pm][0-9a-f]{10}", one)]
    assert len(set(clips)) == len(clips), "clip paths of two figures must not be mixed up"
    for stand_in in ("#0101", "#0202", "#0303", "#0404"):
        assert stand_in not in page, "colours come from the page's style"


def test_many_ranks_and_layers_become_heat_maps(tmp_path: Path) -> None:
    story = Story(ranks=12, layers=30, slow=(7, 1.5))
    page = write_report([write_run(tmp_path / "run", story)]).read_text()
    assert "Blank is the median" in page
    assert "block0_bn" in page


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", Story())
    second = write_run(tmp_path / "second", Story(step_seconds=0.05))
    path = write_report([first, second])
    assert path == first / "report-with-second.html"
    page = path.read_text()
    assert '<td class="good">+100%</td>' in page, "twice the examples per second"
    assert "<h2>Step time by rank, A</h2>" in page
    assert "<h2>Step time by rank, B</h2>" in page


def test_names_and_notes_cannot_become_markup(tmp_path: Path) -> None:
    run = tmp_path / "<b>&amp;'"
    write_run(run, Story(epochs=1, notes=("<script>alert(1)</script>",)))
    page = write_report([run]).read_text()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_a_run_without_steps_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"time": 5.0, "event": "run", "attempt": 0}\n')
    page = write_report([tmp_path]).read_text()
    assert "unfinished" in page


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Story(epochs=1))
    with pytest.raises(LauncherError, match="the report cannot be written to"):
        write_report([run], tmp_path / "nowhere" / "report.html")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "EMPTY", "nothing"], "no run"),
        (["EMPTY"], "is not a run"),
        (["a", "b", "c"], "expected one run or two"),
    ],
)
def test_bad_requests_are_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    arguments = [str(tmp_path) if word == "EMPTY" else word for word in arguments]
    done = _launcher("report", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("launcher: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_the_command_prints_the_path_of_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Story(epochs=2))
    done = _launcher("report", str(run), "--file", str(tmp_path / "page.html"))
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).read_text().startswith("<!DOCTYPE html>")


def _launcher(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

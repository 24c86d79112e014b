"""Runs the fault matrix and writes its results to docs/reliability.md.

python -m benchmarks.faults [--json FILE]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
_PAGE = _REPOSITORY / "docs" / "reliability.md"
_BEGIN, _END = "<!-- figures of python -m benchmarks.faults -->", "<!-- end of the figures -->"
_PARTS = ("ranks", "leaving", "launcher", "resources", "training", "hosts")
_ADDRESS = re.compile(r"\b(?!127\.)\d+\.\d+\.\d+\.\d+\b")
_DIRECTORY = re.compile(r"(?<![\w.])(?:/[\w.@-]+){2,}")
_TIME = re.compile(r"\b\d\d:\d\d:\d\d\b")
_PROCESS = re.compile(r"(process|127\.0\.0\.1:)\s?\d+")


def main() -> None:
    """Runs the tests of the matrix and tabulates the results that they record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="Also write the figures here.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        noted = Path(directory) / "figures"
        noted.touch()
        tests = [f"tests/launcher/test_faults_{part}.py" for part in _PARTS]
        code = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *tests],
            cwd=_REPOSITORY,
            env={**os.environ, "FAULT_FIGURES": str(noted)},
            check=False,
        ).returncode
        rows = [json.loads(line) for line in noted.read_text().splitlines()]
    table = _table(rows)
    print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if code != 0:
        sys.exit("the tests of the matrix fail, so the page was not changed")
    text = _PAGE.read_text()
    before, after = text[: text.index(_BEGIN) + len(_BEGIN)], text[text.index(_END) :]
    _PAGE.write_text(f"{before}\n\n{table}\n\n{after}")


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| fault | seconds until the end | survivors | exit code | first line |",
        "|---|---:|---:|---:|---|",
    ]
    for row in rows:
        code = row["exit_code"]
        shown = 128 - code if code < 0 else code
        cells = [row["fault"], f"{row['seconds']:.1f}", row["survivors"], shown]
        lines.append("| " + " | ".join(map(str, cells)) + f" | {_anonymous(row['first_line'])} |")
    return "\n".join(lines)


def _anonymous(line: str) -> str:
    """The line without parts that differ between runs and machines."""
    line = _TIME.sub("TIME", _ADDRESS.sub("HOST", line))
    line = _PROCESS.sub(lambda found: f"{found[1]}{'' if ':' in found[1] else ' '}N", line)
    return _DIRECTORY.sub("PATH", line).replace("|", "\\|")


if __name__ == "__main__":
    main()

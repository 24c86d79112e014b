"""The table of what tests noticed: kept in build/mutants, shown in CONTRIBUTING.md."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.processes import REPOSITORY

OUTPUT = REPOSITORY / "build" / "mutants"
PAGE = REPOSITORY / "CONTRIBUTING.md"
_BEGIN, _END = "<!-- mutants: made by `make mutants` -->", "<!-- end of mutants -->"
_RESULTS = OUTPUT / "results.json"


def keep(verdicts: Mapping[str, Sequence[str]], known: Sequence[str]) -> str:
    """Adds the verdicts by module to those of earlier runs; returns the table, which the page has.

    Args:
        verdicts: For each module what became of its mutants.
        known: All modules, in the order of the table; others are forgotten.
    """
    results = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else {}
    for path, found in verdicts.items():
        counts = {name: found.count(name) for name in ("killed", "timeout", "survived")}
        results[path] = {**counts, "commit": _commit(), "machine": _machine()}
    results = {path: results[path] for path in known if path in results}
    _RESULTS.write_text(json.dumps(results, indent=1))
    text = _table(results)
    (OUTPUT / "table.md").write_text(text)
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    PAGE.write_text(f"{before}{_BEGIN}\n\n{text}\n{_END}{rest.partition(_END)[2]}")
    return text


def _table(results: dict[str, dict]) -> str:
    lines = [
        "| module | mutants | killed | timeouts | survived | noticed | commit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path, row in results.items():
        numbers = [row["killed"], row["timeout"], row["survived"]]
        noticed = (row["killed"] + row["timeout"]) / max(1, sum(numbers))
        cells = [f"`{path}`", sum(numbers), *numbers, f"{noticed:.0%}", row["commit"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    machines = sorted({row["machine"] for row in results.values()})
    return "\n".join([*lines, "", f"On {' and '.join(machines)}."]) + "\n"


def _commit() -> str:
    git = ["git", "describe", "--always", "--dirty=+"]
    return subprocess.run(git, cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()


def _machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    name = " ".join(models[0].split()) if models else platform.machine()
    return f"{len(models) or 1} cores of {name}, Python {platform.python_version()}"

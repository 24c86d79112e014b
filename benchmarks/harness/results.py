"""Results of benchmarks: medians, bars, tables and JSON."""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import machine


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, over all its steps on all ranks.

    Attributes:
        contender: Description of the contender.
        backend: Name of its job.
        case: Description of the case.
        samples: Number of steps.
        others: The largest share of all cores that other programs used in a turn that counts.
    """

    contender: str
    backend: str
    case: str
    samples: int
    minimum: float
    median: float
    p90: float
    others: float

    @classmethod
    def of(
        cls, contender: str, backend: str, case: str, seconds: Sequence[float], others: float
    ) -> "Timing":
        ordered = sorted(seconds)
        return cls(
            contender,
            backend,
            case,
            len(ordered),
            ordered[0],
            statistics.median(ordered),
            ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
            others,
        )


@dataclass(frozen=True)
class Bar:
    """A requirement and its measurement.

    Attributes:
        claim: The requirement in words.
        measured: The measured value.
        limit: The required value.
        at_most: Whether the value must be at most the limit, otherwise at least.
        unit: Unit of both numbers.
    """

    claim: str
    measured: float
    limit: float
    at_most: bool
    unit: str = "×"

    @property
    def holds(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    def cells(self) -> tuple[str, str, str, str]:
        sign = "≤" if self.at_most else "≥"
        verdict = "holds" if self.holds else "does not hold"
        return (
            self.claim,
            f"{sign} {self.limit:g} {self.unit}",
            f"{self.measured:.3g} {self.unit}",
            verdict,
        )


@dataclass
class Report:
    """The results of one benchmark.

    Attributes:
        name: Name of the benchmark.
        settings: Ranks, threads, steps, and other parameters.
        timings: One for each contender and case.
        bars: The requirements.
        details: Results specific to this benchmark.
    """

    name: str
    settings: dict[str, Any]
    timings: list[Timing] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=machine.describe)

    def median(self, contender: str, case: str, backend: str | None = None) -> float:
        """The median seconds of a contender.

        Raises:
            KeyError: It was not measured.
        """
        for timing in self.timings:
            if (timing.contender, timing.case) == (contender, case) and backend in (
                None,
                timing.backend,
            ):
                return timing.median
        raise KeyError(f"{contender} was not measured on {case}")

    def show(self) -> None:
        """Prints the tables."""
        console = Console()
        if not console.is_terminal:
            console.width = 120  # no truncation in files and pipes
        console.print(machine.in_words(self.machine), highlight=False)
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        console.print(settings, highlight=False)
        for case in dict.fromkeys(timing.case for timing in self.timings):
            table = Table(
                "contender", "backend", "min", "median", "p90", "steps", "others", title=case
            )
            for timing in self.timings:
                if timing.case == case:
                    numbers = map(with_unit, (timing.minimum, timing.median, timing.p90))
                    cells = (*numbers, str(timing.samples), f"{timing.others:.0%}")
                    table.add_row(timing.contender, timing.backend, *cells)
            console.print(table)
        if self.bars:
            table = Table("claim", "bar", "measured", "verdict")
            for bar in self.bars:
                table.add_row(*bar.cells())
            console.print(table)

    def write(self, path: Path) -> None:
        """Writes everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "benchmark": self.name,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            **{k: v for k, v in asdict(self).items() if k not in ("name", "bars")},
            "bars": [{**asdict(bar), "holds": bar.holds} for bar in self.bars],
        }
        path.write_text(json.dumps(content, indent=2) + "\n")


def with_unit(seconds: float) -> str:
    """Three digits with a suitable unit."""
    for limit, factor, unit in ((0.9995e-3, 1e6, "µs"), (0.9995, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.2f} s"


def arguments(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to check that it works")
    return parser


def finish(report: Report, output: Path | None) -> None:
    """Prints the report, and writes it to `output` unless that is None."""
    report.show()
    if output is not None:
        report.write(output)

"""Figures and how they are shown: medians, bars, a table for people and JSON for programs."""

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
        contender: Who, in words.
        engine: How its ranks meet.
        case: What they did.
        samples: How many steps.
        others: The largest share of all cores that other programs took in a turn that counts.
    """

    contender: str
    engine: str
    case: str
    samples: int
    minimum: float
    median: float
    p90: float
    others: float

    @classmethod
    def of(
        cls, contender: str, engine: str, case: str, seconds: Sequence[float], others: float
    ) -> "Timing":
        ordered = sorted(seconds)
        return cls(
            contender,
            engine,
            case,
            len(ordered),
            ordered[0],
            statistics.median(ordered),
            ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
            others,
        )


@dataclass(frozen=True)
class Bar:
    """What must hold, and what was measured.

    Attributes:
        claim: In words.
        measured: The value.
        limit: What it must reach.
        at_most: Whether smaller is better.
        unit: Stands behind both numbers.
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
    """All that one benchmark found.

    Attributes:
        name: Of the benchmark.
        settings: Ranks, threads, steps, and what else the figures depend on.
        timings: One for each contender and case.
        bars: The claims judged.
        details: Figures of this benchmark only.
    """

    name: str
    settings: dict[str, Any]
    timings: list[Timing] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=machine.describe)

    def median(self, contender: str, case: str, engine: str | None = None) -> float:
        """The median seconds of a contender that was measured.

        Raises:
            KeyError: It was not.
        """
        for timing in self.timings:
            if (timing.contender, timing.case) == (contender, case) and engine in (
                None,
                timing.engine,
            ):
                return timing.median
        raise KeyError(f"{contender} was not measured on {case}")

    def show(self) -> None:
        """Prints the tables."""
        console = Console()
        if not console.is_terminal:
            console.width = 120  # in a file or a pipe nothing need be cut
        console.print(machine.in_words(self.machine), highlight=False)
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        console.print(settings, highlight=False)
        for case in dict.fromkeys(timing.case for timing in self.timings):
            table = Table(
                "contender", "engine", "min", "median", "p90", "steps", "others", title=case
            )
            for timing in self.timings:
                if timing.case == case:
                    numbers = map(with_unit, (timing.minimum, timing.median, timing.p90))
                    cells = (*numbers, str(timing.samples), f"{timing.others:.0%}")
                    table.add_row(timing.contender, timing.engine, *cells)
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
    """Three digits and the unit that suits them."""
    for limit, factor, unit in ((0.9995e-3, 1e6, "µs"), (0.9995, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.2f} s"


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write the figures here, as JSON")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to see that it works")
    return parser


def finish(report: Report, output: Path | None) -> None:
    """Shows the report and writes it where that was asked for."""
    report.show()
    if output is not None:
        report.write(output)

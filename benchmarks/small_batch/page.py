"""Writes the tables of a study to its page, between two marks."""

from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.small_batch.estimates import (
    Estimate,
    Quantity,
    Table,
    accuracy,
    gap,
    recomputed_accuracy,
)
from benchmarks.small_batch.plan import NORMS, SHARDINGS, Plan, Sharding
from benchmarks.small_batch.store import Study

BEGIN, END = "<!-- tables of python -m benchmarks.small_batch -->", "<!-- end of the tables -->"

_SHARDING_NAMES = {"shuffled": "shuffled", "by-class": "sorted by class"}
_IMPLEMENTATIONS = ("syncbn", "horovod", "keras")
_SHOWN_RATIOS = (1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)

Cell = Callable[[Sharding, int, int], str]


def write_page(study: Study, page: Path) -> None:
    """Replaces the tables of the page; creates a page with only the tables if there is none."""
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    page.write_text(f"{before}\n\n{tables(study)}\n\n{after}")


def tables(study: Study) -> str:
    """All tables, in Markdown."""
    plan, table = study.plan, Table(study.results)

    def gains(quantity: Quantity) -> str:
        return _grid(
            plan, lambda data, world, batch: _gain(table.gain(data, world, batch, quantity))
        )

    blocks = [
        "**Gain of SyncBN over local BN**, in percentage points of test accuracy, ± half of the "
        f"95% confidence interval over {plan.seeds} seeds, by images per rank. Bold: zero lies "
        "outside.",
        gains(accuracy),
        "**The same after `syncbn.recompute_statistics`** replaced the moving statistics of both "
        "by those of the whole training part.",
        gains(recomputed_accuracy),
        "**Test accuracy and train/test gap**, in percent and points.",
        "\n".join(_all_rows(plan, table)),
        "**Largest relative error of the variance** over channels.",
        "\n".join(_numerics_rows(study)),
    ]
    return "\n\n".join(blocks)


def _grid(plan: Plan, cell: Cell) -> str:
    """A row per sharding and world size, a column per batch."""
    lines = [
        "| data | ranks | " + " | ".join(str(batch) for batch in plan.batches) + " |",
        "|---|---:|" + "---:|" * len(plan.batches),
    ]
    for sharding in SHARDINGS:
        for world in plan.worlds:
            cells = " | ".join(cell(sharding, world, batch) for batch in plan.batches)
            lines.append(f"| {_SHARDING_NAMES[sharding]} | {world} | {cells} |")
    return "\n".join(lines)


def _gain(estimate: Estimate) -> str:
    text = _unbroken(f"{estimate.mean:+.1f} ± {estimate.half:.1f}")
    return text if estimate.verdict == "no difference" else f"**{text}**"


def _unbroken(number: str) -> str:
    """With a minus sign, and no-break spaces."""
    return number.replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}")


def _all_rows(plan: Plan, table: Table) -> Iterator[str]:
    yield (
        "| data | ranks | images per rank | SyncBN | local BN | no norm "
        "| gap SyncBN | gap local BN | gap no norm |"
    )
    yield "|---|---:|---:|" + "---:|" * 6
    for sharding in SHARDINGS:
        for world in plan.worlds:
            for batch in plan.batches:
                cells = [
                    table.estimate(quantity, sharding, world, batch, norm)
                    for quantity in (accuracy, gap)
                    for norm in NORMS
                ]
                numbers = " | ".join(
                    _unbroken(f"{cell.mean:.1f} ± {cell.half:.1f}") for cell in cells
                )
                yield f"| {_SHARDING_NAMES[sharding]} | {world} | {batch} | {numbers} |"


def _numerics_rows(study: Study) -> Iterator[str]:
    errors = {(point.implementation, point.ratio): point.largest for point in study.numerics}
    yield "| mean/std | " + " | ".join(f"{ratio:.0e}" for ratio in _SHOWN_RATIOS) + " |"
    yield "|---|" + "---:|" * len(_SHOWN_RATIOS)
    for name in _IMPLEMENTATIONS:
        cells = [errors.get((name, ratio)) for ratio in _SHOWN_RATIOS]
        shown = " | ".join("not run" if cell is None else f"{cell:.0e}" for cell in cells)
        yield f"| {name} | {shown} |"

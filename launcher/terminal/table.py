"""The table of ranks: live while the job runs, and once for `status`."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.runs.reader import RankStatus, RunState
from launcher.spec import Metrics
from launcher.terminal.words import duration

_MOST_ROWS = 32
_COLOURS = {
    "starting": "yellow",
    "restarting": "yellow",
    "stopping": "yellow",
    "failed": "red",
    "lost": "red",
    "stopped": "magenta",
}


def render(run: RunState, most_restarts: int | None, metrics: Metrics | None) -> RenderableType:
    """One line on the job, then one row per rank; with many ranks only the slowest ones."""
    counted = f"restarts {run.attempt}"
    if most_restarts is not None:
        counted += f" of {most_restarts}"
    parts = [run.id, run.state, duration(run.seconds), counted]
    if run.checkpoint is not None:
        parts.append(f"checkpoint at step {run.checkpoint}")
    if metrics is not None and metrics.port:
        parts.append(f"metrics http://{metrics.address}:{metrics.port}/metrics")
    head = Text(" · ".join(parts), style=_COLOURS.get(run.state, "green"))
    table = Table(box=None, pad_edge=False)
    for name in ("rank", "host", "state"):
        table.add_column(name)
    for name in ("step", "images/s", "loss"):
        table.add_column(name, justify="right")
    rows = sorted(run.ranks.items())
    if len(rows) > _MOST_ROWS:
        rows = sorted(rows, key=lambda item: (item[1].step or 0, item[0]))[:_MOST_ROWS]
    for rank, row in rows:
        table.add_row(str(rank), *_cells(row))
    hidden = len(run.ranks) - len(rows)
    more = [Text(f"and {hidden} more, none of them slower")] if hidden else []
    return Group(head, table, *more)


def _cells(row: RankStatus) -> tuple[Text | str, ...]:
    colour = _COLOURS.get(row.state, "red" if row.state.startswith("ended") else "green")
    step = "" if row.step is None else str(row.step)
    return (
        row.host,
        Text(row.state, style=colour),
        step,
        _number(row.numbers.get("images_per_second"), ".0f"),
        _number(row.numbers.get("loss"), ".4f"),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

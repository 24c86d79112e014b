"""The report as one self-contained HTML file: no script, no network."""

import time
from collections.abc import Sequence
from html import escape
from importlib import resources

import numpy as np

from launcher.report.drawing import Figure
from launcher.report.findings import Finding, findings
from launcher.report.own_figures import own_figures
from launcher.report.run import Run
from launcher.report.shared_figures import LETTERS, shared_figures
from launcher.report.units import bytes_text, percent, seconds_text

_SIGNS = {"good": "✓", "note": "!", "bad": "✕"}

# Shown at the top of the page: name, text, number to compare two runs by, whether more is better.
Fact = tuple[str, str, float | None, bool]


def render(runs: Sequence[Run]) -> str:
    """The page for one run, or for two side by side.

    Raises:
        MissingToolError: matplotlib is not installed.
    """
    title = " and ".join(run.name for run in runs)
    letters = LETTERS if len(runs) > 1 else ("",)
    style = resources.files("launcher.report").joinpath("page.css").read_text()
    body = _single(runs[0]) if len(runs) == 1 else _compared(runs)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} — training report</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
{_figures(runs)}
{"".join(_details(run, letter) for run, letter in zip(runs, letters, strict=True))}
</main>
</body>
</html>
"""


def _single(run: Run) -> str:
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text, _, _ in facts(run)
    )
    return f"""{_heading(run)}
<dl class="tiles">{tiles}</dl>
{_findings(findings(run))}"""


def _compared(runs: Sequence[Run]) -> str:
    first, second = runs
    rows = []
    for (name, one, a, more_is_better), (_, other, b, _) in zip(
        facts(first), facts(second), strict=True
    ):
        severity, change = "", ""
        if a and b is not None and a != b:
            share = b / a - 1
            change = f"{'+' if share > 0 else '−'}{percent(abs(share))}"
            severity = "good" if (share > 0) == more_is_better else "bad"
        rows.append(
            f"<tr><th>{escape(name)}</th><td>{escape(one)}</td><td>{escape(other)}</td>"
            f'<td class="{severity}">{change}</td></tr>'
        )
    names = "".join(f"<th>{letter}</th>" for letter in LETTERS)
    columns = "".join(
        f'<div class="column"><h3>{letter}</h3>{_findings(findings(run))}</div>'
        for run, letter in zip(runs, LETTERS, strict=True)
    )
    headings = "".join(
        f'<h1><span class="letter">{letter}</span>{escape(run.name)}</h1>'
        f'<p class="about">{escape(_about(run))}</p>'
        for run, letter in zip(runs, LETTERS, strict=True)
    )
    return f"""<header class="two"><p class="kind">Two runs side by side</p>{headings}</header>
<div class="scroll"><table class="compare">
<thead><tr><td></td>{names}<th>change</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<div class="columns">{columns}</div>"""


def _heading(run: Run) -> str:
    return f"""<header><p class="kind">Training report
<span class="status {run.status}">{run.status}</span></p>
<h1>{escape(run.name)}</h1><p class="about">{escape(_about(run))}</p></header>"""


def _about(run: Run) -> str:
    start = run.start
    parts = [f"{start.get('model')} on {start.get('dataset')}"] if start else []
    if run.world_size:
        ranks = f"{run.world_size} rank{'s' * (run.world_size > 1)}"
        parts.append(f"{ranks} over {start.get('backend')}, norm {start.get('norm')}")
    parts.append(time.strftime("%d %B %Y, %H:%M", time.localtime(run.began)))
    return " · ".join(parts)


def facts(run: Run) -> list[Fact]:
    """The most important numbers."""
    steps = run.step_seconds
    quantiles = np.quantile(steps, [0.5, 0.95]) if len(steps) else [None, None]
    accuracy, loss = run.held_out
    rate = run.rate
    syncbn = run.shares["sync_batch_norm_all_reduce"] if run.windows else None
    took = run.ended - run.began
    memory = sum(run.windows[-1]["ranks"]["resident_memory"]) if run.windows else None
    return [
        ("held-out accuracy", "–" if accuracy is None else f"{accuracy:.2%}", accuracy, True),
        ("held-out loss", "–" if loss is None else f"{loss:.4f}", loss, False),
        ("examples per second", "–" if rate is None else f"{rate:,.0f}", rate, True),
        ("median step", *_seconds(quantiles[0]), False),
        ("slowest 5% of steps", *_seconds(quantiles[1]), False),
        ("SyncBN share of a step", "–" if syncbn is None else percent(syncbn), syncbn, False),
        ("memory of all ranks", "–" if memory is None else bytes_text(memory), memory, False),
        ("duration", seconds_text(took), took, False),
    ]


def _seconds(value: float | None) -> tuple[str, float | None]:
    return ("–", None) if value is None else (seconds_text(float(value)), float(value))


def _findings(found: Sequence[Finding]) -> str:
    items = "".join(
        f'<li class="{one.severity}"><span class="sign">{_SIGNS[one.severity]}</span>'
        f"<div><strong>{escape(one.headline)}</strong><p>{escape(one.text)}</p></div></li>"
        for one in found
    )
    return f'<ul class="findings">{items}</ul>' if items else ""


def _figures(runs: Sequence[Run]) -> str:
    curves = [_figure(figure) for figure in shared_figures(runs)]
    if len(runs) == 1:
        return _section("figures", [*curves, *map(_figure, own_figures(runs[0]))])
    # Curves of both runs in one figure, then each run's own figures in pairs.
    own = [own_figures(run) for run in runs]
    titles = list(dict.fromkeys(figure.title for figures in own for figure in figures))
    pairs = [
        _figure(figure, f", {letter}")
        for title in titles
        for figures, letter in zip(own, LETTERS, strict=True)
        for figure in figures
        if figure.title == title
    ]
    return _section("figures", curves) + _section("figures pairs", pairs)


def _section(kind: str, drawn: Sequence[str]) -> str:
    content = "\n".join(drawn)
    return f'<section class="{kind}" aria-label="Figures">\n{content}\n</section>'


def _figure(figure: Figure, which: str = "") -> str:
    return f"""<figure>
<figcaption><h2>{escape(figure.title)}{which}</h2><p>{escape(figure.caption)}</p></figcaption>
<div role="img" aria-label="{escape(figure.title)}: {escape(figure.caption)}">{figure.svg}</div>
</figure>"""


def _details(run: Run, letter: str) -> str:
    config = run.start.get("config") or {}
    versions = run.start.get("versions") or {}
    of = f" of {letter}" if letter else ""
    notes = "".join(
        f"<tr><th>step {start['step']}</th><td>{escape(note)}</td></tr>"
        for start in run.of("start")
        for note in start.get("notes", [])
    )
    tables = [("Configuration", _table(config)), ("Versions", _table(versions)), ("Notes", notes)]
    return "".join(
        f"<details><summary>{name}{of}</summary><table>{rows}</table></details>"
        for name, rows in tables
        if rows
    )


def _table(content: dict[str, object]) -> str:
    return "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th>"
        f"<td>{'–' if value is None else escape(str(value))}</td></tr>"
        for name, value in content.items()
    )

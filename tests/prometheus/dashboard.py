"""The queries of the Grafana dashboard, with its variables filled in."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[2] / "k8s" / "grafana-dashboard.json"


@dataclass(frozen=True)
class Query:
    """One expression and the panel it belongs to."""

    panel: str
    expression: str


def load() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def queries(page: str = "rank") -> Iterator[Query]:
    """Every query of every panel and annotation, ready to be asked."""
    dashboard = load()
    sources = [(panel["title"], panel.get("targets", [])) for panel in dashboard["panels"]]
    sources.append(("annotations", dashboard["annotations"]["list"]))
    for panel, targets in sources:
        for target in targets:
            expression = target["expr"].replace("$__rate_interval", "15s")
            expression = expression.replace("$run", ".*").replace("$page", page)
            yield Query(panel, expression)

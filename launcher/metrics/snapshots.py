"""The metrics of ranks as files, which outlive the ranks, aggregated over ranks and attempts.

Each rank under a launcher rewrites RUN/metrics/attempt-K/rank-N.json every few seconds; the
launcher reads them when its own page is requested, without ports or connections to ranks.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from launcher.atomic import replace_json
from launcher.metrics.page import Metric, Page
from launcher.runs import layout

# Name and labels of a sample.
Key = tuple[str, tuple[tuple[str, str], ...]]
Samples = dict[Key, float]


def samples_of(page: Page) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in page.registry.collect()
        for sample in family.samples
    }


def write_snapshot(path: Path, page: Page) -> None:
    """Writes the current page to the file, atomically. Raises OSError."""
    samples = samples_of(page).items()
    # NaN and infinities as text, since JSON has no such numbers; `float` reads both.
    content = [[n, labels, x if math.isfinite(x) else str(x)] for (n, labels), x in samples]
    replace_json(path, content, indent=None, durable=False)


def read_snapshot(path: Path) -> Samples:
    content = json.loads(path.read_text())
    return {
        (name, tuple((label, text) for label, text in labels)): float(value)
        for name, labels, value in content
    }


class JobSamples(Collector):
    """The aggregated snapshots of a run, for a registry.

    Counters and histograms never decrease while the run lasts: the counts of earlier attempts are
    added. When a rank is killed, what it counted since its last snapshot is lost.

    Args:
        metrics: The metrics to export, each with its aggregation over ranks.
        run: The run's directory.
        rank_labels: Whether to label samples by rank instead of aggregating them.
    """

    def __init__(self, metrics: Iterable[Metric[Any]], run: Path, rank_labels: bool) -> None:
        self._metrics = list(metrics)
        self._run = run
        self._rank_labels = rank_labels
        self._read: dict[tuple[int, int], Samples] = {}
        self._zeros = {} if rank_labels else samples_of(Page(self._metrics))

    def collect(self) -> Iterator[Family]:
        attempts = self._attempts()
        for metric in self._metrics:
            family = Family(metric.name.removesuffix("_total"), metric.help, metric.type)
            values = {key: 0.0 for key in self._zeros if _belongs(key, metric)}
            for ranks in attempts if metric.accumulates else attempts[-1:]:
                for key, value in self._over_ranks(metric, ranks).items():
                    before = values.get(key, 0.0) if metric.accumulates else 0.0
                    values[key] = before + value
            for (name, labels), value in values.items():
                # Info metrics have a label for the page.
                page = {"page": "job"} if "page" in metric.labels else {}
                family.add_sample(name, {**dict(labels), **page}, value)
            yield family

    def _over_ranks(self, metric: Metric[Any], ranks: Mapping[int, Samples]) -> Samples:
        total: Samples = {}
        for rank, samples in sorted(ranks.items()):
            mine = {key: value for key, value in samples.items() if _belongs(key, metric)}
            if self._rank_labels:
                total |= {_with_rank(key, rank): value for key, value in mine.items()}
                continue
            if metric.over_ranks == "first":
                return mine
            for key, value in mine.items():
                before = total.get(key, value if metric.over_ranks == "max" else 0.0)
                total[key] = max(before, value) if metric.over_ranks == "max" else before + value
        return total

    def _attempts(self) -> list[dict[int, Samples]]:
        """For each attempt with snapshots, oldest first, the samples of its ranks."""
        attempts: dict[int, dict[int, Samples]] = {}
        for attempt, rank, path in layout.snapshots(self._run):
            with suppress(OSError, ValueError):  # the previous snapshot stays valid
                self._read[attempt, rank] = read_snapshot(path)
        for (attempt, rank), samples in self._read.items():
            attempts.setdefault(attempt, {})[rank] = samples
        return [attempts[number] for number in sorted(attempts)]


def _with_rank(key: Key, rank: int) -> Key:
    name, labels = key
    return name, tuple(sorted({**dict(labels), "rank": str(rank)}.items()))


def _belongs(key: Key, metric: Metric[Any]) -> bool:
    return key[0].removeprefix(metric.name) in metric.suffixes

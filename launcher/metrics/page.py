"""What a metric is, and a page of metrics that one process exports."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import Any, Generic, Literal, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

disable_created_metrics()


class Histogram(Collector):
    """Counts values by bucket, many per call.

    prometheus-client's own takes one value per call of about 2 µs; a step of a deep network has a
    hundred all-reduces.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        self._name, self._text, self._label_names = name, text, labels
        self._bounds = tuple(buckets)
        self._series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        if not labels:
            self.observe([])

    def observe(self, values: Iterable[float], *labels: str) -> None:
        """Adds `values` to the series of `labels`, one value for each label name."""
        new: tuple[list[int], list[float]] = ([0] * (len(self._bounds) + 1), [0.0])
        counts, total = self._series.setdefault(labels, new)
        for value in values:
            counts[bisect_left(self._bounds, value)] += 1
            total[0] += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._label_names)
        bounds = [*map(repr, map(float, self._bounds)), "+Inf"]
        for labels, (counts, total) in list(self._series.items()):
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total[0])
        yield family


Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)


@dataclass(frozen=True)
class Metric(Generic[Instrument]):
    """One metric.

    Attributes:
        kind: Counter, Gauge or Histogram.
        name: As exported, with its unit and, for counters, `_total`.
        help: One sentence.
        labels: The values of each label, all exported from the start; empty if they are only known
            at run time and stay few.
        over_ranks: How the values of all ranks are aggregated: their sum, the largest, or the
            lowest rank's. Counters and histograms then add those of earlier attempts.
        buckets: Upper bounds of a histogram, in the metric's unit.
    """

    kind: type[Instrument]
    name: str
    help: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    over_ranks: Literal["sum", "max", "first"] = "sum"
    buckets: Sequence[float] = ()

    @property
    def type(self) -> str:
        """Prometheus' name for the kind."""
        return self.kind.__name__.lower()

    @property
    def accumulates(self) -> bool:
        """Whether it only grows."""
        return self.kind is not Gauge

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of its samples' names after its own name."""
        return ("_bucket", "_count", "_sum") if self.kind is Histogram else ("",)


class Page:
    """All metrics of one process, zero from the start: `page[STEPS].inc()`."""

    def __init__(self, metrics: Iterable[Metric[Any]]) -> None:
        self.registry = CollectorRegistry()
        self._instruments = {metric.name: self._make(metric) for metric in metrics}

    def __getitem__(self, metric: Metric[Instrument]) -> Instrument:
        return cast("Instrument", self._instruments[metric.name])

    def text(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self.registry)

    def _make(self, metric: Metric[Any]) -> Counter | Gauge | Histogram:
        names = list(metric.labels)
        # Without labels this is one empty combination, which is not a labelled series.
        combinations = [values for values in product(*metric.labels.values()) if values]
        if metric.kind is Histogram:
            histogram = Histogram(metric.name, metric.help, names, metric.buckets)
            self.registry.register(histogram)
            for values in combinations:
                histogram.observe([], *values)
            return histogram
        instrument = metric.kind(metric.name, metric.help, names, registry=self.registry)
        for values in combinations:
            instrument.labels(*values)
        return cast("Counter | Gauge", instrument)

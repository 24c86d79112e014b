"""The definitions follow Prometheus' rules, and a page shows every series from the start."""

import re
from itertools import pairwise

import pytest
from prometheus_client import Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from launcher.metrics import JOB_METRICS, RANK_METRICS, Metric, Page
from launcher.metrics import definitions as m
from launcher.metrics.page import Histogram

ALL = [*RANK_METRICS, *JOB_METRICS]
UNITS = ("seconds", "bytes", "ratio", "total", "info")


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_names_end_in_the_kind_and_the_base_unit(metric: Metric) -> None:
    assert re.fullmatch(r"(training|launcher)_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Counter)
    for wrong in ("millisecond", "minute", "percent", "kilobyte", "_ms", "_mb"):
        assert wrong not in metric.name
    if any(word in metric.name for word in ("duration", "timestamp")):
        assert metric.name.endswith("_seconds")
    assert metric.help.endswith(".")
    assert list(metric.buckets) == sorted(metric.buckets)
    assert (metric.kind is Histogram) == bool(metric.buckets)


def test_names_are_unique() -> None:
    names = [metric.name for metric in ALL]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("metrics", [RANK_METRICS, JOB_METRICS], ids=["rank", "job"])
def test_every_series_exists_from_the_start_with_value_zero(metrics: tuple[Metric, ...]) -> None:
    families = {
        family.name: family
        for family in text_string_to_metric_families(Page(metrics).text().decode())
    }
    for metric in metrics:
        family = families[metric.name.removesuffix("_total")]
        assert family.type == metric.type
        open_ended = [label for label, values in metric.labels.items() if not values]
        if open_ended:
            assert not family.samples, "an info shows up once it is known"
            continue
        assert family.samples
        assert {sample.value for sample in family.samples} == {0.0}
        for label, values in metric.labels.items():
            assert {sample.labels[label] for sample in family.samples} == set(values)


def test_no_page_has_more_than_a_few_hundred_series() -> None:
    assert len(Page(RANK_METRICS).text().splitlines()) < 400


def test_a_histogram_counts_values_into_cumulative_buckets() -> None:
    page = Page([m.STEP_DURATION])
    page[m.STEP_DURATION].observe([0.0005, 0.001, 0.0011, 250.0])
    page[m.STEP_DURATION].observe([0.0011])
    (family,) = text_string_to_metric_families(page.text().decode())
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert buckets["0.001"] == 2, "a bucket holds its upper bound"
    assert buckets["0.0015"] == 4
    assert buckets["100.0"] == 4
    assert buckets["+Inf"] == 5
    values = {s.name: s.value for s in family.samples if not s.name.endswith("_bucket")}
    assert values["training_step_duration_seconds_count"] == 5
    assert values["training_step_duration_seconds_sum"] == pytest.approx(250.0037)


def test_step_buckets_reach_from_a_millisecond_to_a_hundred_seconds() -> None:
    assert m.STEP_BUCKETS[0] == 0.001
    assert m.STEP_BUCKETS[-1] == 100
    ratios = [b / a for a, b in pairwise(m.STEP_BUCKETS)]
    assert max(ratios) < 1.7


def test_labels_of_one_metric_do_not_affect_another() -> None:
    page = Page([m.RESTARTS, m.LOSS])
    page[m.RESTARTS].labels("hang").inc()
    page[m.LOSS].set(float("nan"))
    text = page.text().decode()
    assert 'launcher_restarts_total{reason="hang"} 1.0' in text
    assert 'launcher_restarts_total{reason="oom"} 0.0' in text
    assert "training_loss NaN" in text
    assert isinstance(page[m.LOSS], Gauge)

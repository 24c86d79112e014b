"""The shipped files stand on metrics and labels that exist; promtool accepts them."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from launcher.metrics import JOB_METRICS, RANK_METRICS, Page
from tests.prometheus import dashboard
from tests.prometheus.server import REPOSITORY, RULES

METRICS = {metric.name: metric for metric in (*RANK_METRICS, *JOB_METRICS)}
# Every name a sample can have, with the labels it carries.
SAMPLES = {
    metric.name + suffix: {*metric.labels, *(["le"] if suffix == "_bucket" else [])}
    for metric in METRICS.values()
    for suffix in metric.suffixes
}
# What Prometheus adds to every sample, and what --metrics-rank-labels and the rules' join do.
ALWAYS = {"job", "instance", "rank", "run"}


def _check(expression: str) -> None:
    recorded = expression.replace("page:training_info:run", "training_info")
    names = set(re.findall(r"\b(?:training|launcher)_[a-z_]+", recorded))
    assert names, expression
    assert names <= set(SAMPLES), f"no such metric: {names - set(SAMPLES)}"
    for name, matchers in re.findall(r"\b((?:training|launcher)_[a-z_]+)\{([^}]*)\}", recorded):
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            metric = METRICS[re.sub(r"_(bucket|count|sum)$", "", name)]
            assert label in metric.labels, f"{name} has no label {label}"
            known = metric.labels[label]
            if known:
                assert any(re.fullmatch(value, one) for one in known), f"{label}={value} never is"
    labels = set().union(*(SAMPLES[name] for name in names)) | ALWAYS
    for listed in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", recorded):
        used = {label.strip() for label in listed.split(",") if label.strip()}
        assert used <= labels, f"{used - labels} are no labels of {names}"


@pytest.mark.parametrize("query", list(dashboard.queries()), ids=lambda query: query.panel)
def test_every_query_of_the_dashboard_stands_on_metrics_that_exist(query: dashboard.Query) -> None:
    _check(query.expression)


def test_the_dashboard_shows_what_it_promises() -> None:
    shown = " ".join(query.expression for query in dashboard.queries())
    left_out = {name for name in METRICS if name not in shown}
    # Counted by the histogram of step durations too; starts are for the alert rules.
    assert left_out <= {
        "training_steps_total",
        "training_start_timestamp_seconds",
        "launcher_start_timestamp_seconds",
    }
    content = dashboard.load()
    ids = [panel["id"] for panel in content["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in content["templating"]["list"]}
    assert variables == {"datasource", "run", "page"}
    for panel in content["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


def test_every_rule_stands_on_metrics_that_exist() -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    alerts = [rule["alert"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) == 6
    for rule in group["rules"]:
        _check(rule["expr"])


@pytest.mark.prometheus
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "k8s/alert-rules.yaml"],
        ["test", "rules", "tests/prometheus/alert-rules.test.yaml"],
    ],
    ids=["check", "test"],
)
def test_promtool_accepts_the_alert_rules(arguments: list[str]) -> None:
    _promtool(*arguments)


@pytest.mark.prometheus
def test_promtool_accepts_the_compose_configuration(tmp_path: Path) -> None:
    text = (REPOSITORY / "docker" / "prometheus.yml").read_text()
    assert "/etc/prometheus/alert-rules.yaml" in text
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("/etc/prometheus/alert-rules.yaml", str(RULES)))
    _promtool("check", "config", str(config))


@pytest.mark.prometheus
def test_promtool_finds_no_fault_in_the_pages() -> None:
    for metrics in (RANK_METRICS, JOB_METRICS):
        _promtool("check", "metrics", stdin=Page(metrics).text())


def _promtool(*arguments: str, stdin: bytes = b"") -> None:
    command = ["promtool", *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, input=stdin, capture_output=True, timeout=60, check=False
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    if arguments[0] == "check" and arguments[1] == "metrics":
        assert not said, said

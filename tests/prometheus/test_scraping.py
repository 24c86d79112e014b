"""A real Prometheus scrapes real jobs, and PromQL gives the answers the dashboard shows."""

import json
import time
import urllib.request
from pathlib import Path

import pytest

from tests.processes import Launcher
from tests.prometheus import dashboard
from tests.prometheus.server import Prometheus, prometheus

pytestmark = [pytest.mark.multiprocess, pytest.mark.prometheus, pytest.mark.timeout(170)]

BATCH = 16
TRAIN = ["--epochs", "100000", "--schedule", "constant", "--batch-size", str(BATCH)]
TRAIN += ["--keep-checkpoints", "1", "--norm", "sync", "--model", "tests.unhurried:network"]

EXAMPLES = "sum(rate(training_examples_total[8s]))"
STEPS = "max(rate(training_steps_total[8s]))"
P95 = "histogram_quantile(0.95, sum by (le) (rate(training_step_duration_seconds_bucket[8s])))"
P50 = P95.replace("0.95", "0.5")
SHARE = (
    'sum(rate(training_step_part_seconds_total{part=~".+_all_reduce"}[8s]))'
    " / sum(rate(training_step_part_seconds_total[8s]))"
)
PARTS = (
    "sum(rate(training_step_part_seconds_total[8s]))"
    " / sum(rate(training_step_duration_seconds_sum[8s]))"
)
# SyncBN all-reduces a step on each rank: two for each of the model's three layers.
SYNCBN_A_STEP = (
    'sum(rate(training_all_reduce_duration_seconds_count{kind="sync_batch_norm"}[8s]))'
    " / sum(rate(training_step_duration_seconds_count[8s]))"
)


def _assert_training(server: Prometheus, pages: int) -> None:
    """Throughput, step p95 and all-reduce share of a two-rank job, seen through `pages` pages."""

    def stepping() -> bool:
        return len(server.query("rate(training_steps_total[5s]) > 0.5")) == pages

    server.until(stepping, 100, "ranks that train")
    time.sleep(5)  # until the windows of the queries are full
    assert [float(s["value"][1]) for s in server.query("up")] == [1.0] * pages
    assert {s["value"][1] for s in server.query("training_world_size")} == {"2"}
    # The rank pages count what each trained on, the job's page their sum.
    assert server.value(f"{EXAMPLES} / {STEPS}") == pytest.approx(2 * BATCH, rel=0.25)
    p50, p95 = server.value(P50), server.value(P95)
    assert 0.001 <= p50 <= p95 < 10
    assert 0.005 < server.value(SHARE) < 1
    # Rates of two counters, which a scrape catches at different moments.
    assert server.value(PARTS) == pytest.approx(1.0, abs=0.2)
    assert server.value(SYNCBN_A_STEP) == pytest.approx(6, rel=0.1)
    assert server.value("max(training_diverged_ranks)") == 0
    assert 0 < server.value("max(training_resident_memory_bytes)") < 2e10
    firing = {s["metric"]["alertname"] for s in server.query('ALERTS{alertstate="firing"}')}
    assert firing <= {"TrainingSlowRank"}
    health = [rule["health"] for group in server.rules() for rule in group["rules"]]
    assert set(health) == {"ok"}


def _assert_dashboard(server: Prometheus, page: str, silent: set[str]) -> None:
    """Every query is accepted, and every panel but `silent` ones has something to show."""
    empty = [q.panel for q in dashboard.queries(page) if not server.query(q.expression)]
    assert set(empty) <= silent, empty


def test_ranks_under_bare_horovodrun(horovodrun: Launcher, tmp_path: Path) -> None:
    """No launcher at all: each rank serves its own page on a free port, which a file names."""
    output = tmp_path / "digits"
    arguments = [*TRAIN, "--metrics-port", "0", "--output", str(output)]
    with prometheus(tmp_path / "prometheus", [f"{output}/metrics/targets/rank-*.json"]) as server:
        seldom = {"HOROVOD_CYCLE_TIME": "5"}
        horovodrun.start(2, "launcher.train", arguments, environment=seldom, options=["--gloo"])
        _assert_training(server, pages=2)
        ranks = {s["metric"]["rank"] for s in server.query("training_info")}
        assert ranks == {"0", "1"}
        # What only a launcher knows stays empty here.
        launcher_only = {"Restarts by reason", "Workers by state", "Exits of workers"}
        launcher_only |= {"Requested ranks and attempts", "Rendezvous", "Runs", "annotations"}
        _assert_dashboard(server, "rank", launcher_only)
        target = json.loads((output / "metrics" / "targets" / "rank-1.json").read_text())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{target[0]['targets'][0]}/readyz", timeout=5) as answer:
            assert answer.read() == b"ready\n"


def test_the_page_of_a_job_under_the_launcher(single_process: Launcher, tmp_path: Path) -> None:
    """One page for the job: sums over its ranks, and counters that a restart does not turn back."""
    arguments = ["run", "-np", "2", "--backend", "mpi", "--metrics-port", "0", "--output"]
    arguments += [str(tmp_path / "runs"), "--", "python", "-m", "launcher.train", *TRAIN]
    pages = [f"{tmp_path}/runs/targets/*.json"]
    with prometheus(tmp_path / "prometheus", pages) as server:
        job = single_process.start(1, "launcher", arguments)
        _assert_training(server, pages=1)
        workers = server.query("launcher_workers > 0")
        assert sum(float(sample["value"][1]) for sample in workers) == 2
        server.until(lambda: not server.query('launcher_workers{state="starting"} > 0'), 20, "work")

        before = server.value("training_steps_total")
        job.rank_process(1).kill()
        server.until(lambda: server.value("launcher_attempt") == 1, 60, "a second attempt")
        server.until(lambda: server.value("training_steps_total") > before + 20, 60, "more steps")
        for counter in ("training_steps_total", "training_step_duration_seconds_count"):
            assert server.value(f"resets({counter}[5m])") == 0, f"{counter} went backwards"
        assert server.value('launcher_restarts_total{reason="killed"}') == 1
        assert server.value("sum(launcher_worker_exits_total)") >= 1
        _assert_dashboard(server, "job", {"annotations"})

"""Writes docs/metrics.md from the definitions: `python -m launcher.metrics.document`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launcher.metrics import JOB_METRICS, RANK_METRICS, Metric

_HEAD = """# Metrics

*Written by `python -m launcher.metrics.document` from `launcher/metrics/definitions.py`.*

## Where they are

- **Each rank** serves `/metrics`, `/healthz` (the process answers) and `/readyz` (it has joined the
  others and finished a step) with `python -m launcher.train --metrics-port P`, on P plus its local
  rank. Port 0 takes a free one; `OUTPUT/metrics/targets/rank-N.json` says which, as a file for
  Prometheus' `file_sd_configs`. It makes no difference who started the ranks:
  `horovodrun -np 4 python -m launcher.train --metrics-port 9400` needs nothing else.
- **The launcher** serves one page for the whole job with `launcher run --metrics-port P`: what the
  ranks on this host have counted, joined as the table says, through all restarts (a counter never
  goes backwards while the job lasts), and the job's own life. The ranks are then on P + 1 and up.
  `--metrics-rank-labels` keeps the ranks apart on the job's page. While a job runs, a file in
  `runs/targets/` names its page: one `file_sd_configs` for all jobs of a machine.
- **Loopback only**, unless `--metrics-host` names another address.
- **Short jobs** that end between two scrapes hand their last page to a Pushgateway with
  `--metrics-push HOST:PORT`.
- **Kubernetes**: pods carry the `prometheus.io` annotations; `k8s/monitoring/podmonitor.yaml` is
  for the operator. **Compose**: Prometheus stands beside the job, Grafana with `--profile grafana`.

Scrape the job's page or those of the ranks, or both: the label `page` of `training_info` tells them
apart, and the dashboard asks which to show. Its other labels say which run a page belongs to:

```promql
sum by (run) (
  rate(training_examples_total[1m])
  * on (job, instance) group_left (run) max by (job, instance, run) (training_info{page="rank"})
)
```

Step p95, and the share of all-reduces in a step:

```promql
histogram_quantile(0.95, sum by (le) (rate(training_step_duration_seconds_bucket[1m])))

sum(rate(training_step_part_seconds_total{part=~".+_all_reduce"}[1m]))
/ sum(rate(training_step_part_seconds_total[1m]))
```

`k8s/alert-rules.yaml` holds the alerts: no step for ten minutes, a loss that is not finite, ranks
that diverge, restarts, an old checkpoint, one slow rank. `k8s/grafana-dashboard.json` shows one job
or a fleet.

## What they cost

`mpirun -np 2 python benchmarks/metrics.py` compares the same steps watched and unwatched, in
turns. On two cores, medians of one run: `resnet18` 125.9 ms a step and +0.06 % watched (+0.3 %
of its processor time); `cnn` 2.1 ms, where the difference (−2 %) was below the noise of the
machine. A metric that fails (a taken port, a full disk, a gateway that does not answer) is one
line on stderr; training goes on.

On a GPU the duration of an all-reduce in a graph is the host's view of it. Where one graph runs the
same all-reduce several times a step (`--micro-batches` without MPI), the last run is counted.
"""

_JOINED = {"sum": "sum", "max": "largest", "first": "rank 0's"}


def document() -> str:
    """The whole page, Markdown."""
    return "\n".join(
        [
            _HEAD,
            "## Of each rank, and joined on the job's page",
            "",
            *_table(RANK_METRICS, joined=True),
            "",
            "## Of the launcher",
            "",
            *_table(JOB_METRICS, joined=False),
            "",
        ]
    )


def _table(metrics: Iterable[Metric[Any]], joined: bool) -> Iterable[str]:
    yield "| metric | kind | meaning |" + (" over ranks |" if joined else "")
    yield "|---|---|---|" + ("---|" if joined else "")
    for metric in metrics:
        cells = [f"`{metric.name}`", metric.type, f"{metric.help}{_labels(metric)}"]
        if joined:
            cells.append(_JOINED[metric.over_ranks])
        yield f"| {' | '.join(cells)} |"


def _labels(metric: Metric[Any]) -> str:
    known = "".join(f" `{label}`: {', '.join(v)}." for label, v in metric.labels.items() if v)
    free = ", ".join(f"`{label}`" for label, values in metric.labels.items() if not values)
    return f"{known} Labels: {free}." if free else known


def main() -> None:
    path = Path(__file__).parents[2] / "docs" / "metrics.md"
    path.write_text(document())
    print(path)


if __name__ == "__main__":
    main()

"""The metrics of a job: `definitions` has every metric, `page` their types.

`server` serves a page over HTTP, `snapshots` stores the pages of ranks in files, `job` aggregates
them into the page of the job.
"""

from launcher.metrics.definitions import JOB_METRICS, RANK_METRICS
from launcher.metrics.page import Metric, Page

__all__ = ["JOB_METRICS", "RANK_METRICS", "Metric", "Page"]

"""What can be seen of a job: `definitions` has every metric, `page` what one is.

`server` offers a page over HTTP, `snapshots` keeps those of ranks in files, `job` joins them into
the launcher's page for the whole job.
"""

from launcher.metrics.definitions import JOB_METRICS, RANK_METRICS
from launcher.metrics.page import Metric, Page

__all__ = ["JOB_METRICS", "RANK_METRICS", "Metric", "Page"]

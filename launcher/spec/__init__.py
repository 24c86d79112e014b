"""What a job is: plain data, checked before anything starts.

job.py is the whole of it, containers.py its tables for containers and clusters, fields.py the kinds
of values, flag_values.py what a flag
means, messages.py what is said of a wrong one, secrets.py what is never recorded.
"""

from launcher.spec.containers import Container, Kubernetes
from launcher.spec.job import (
    Backend,
    Host,
    JobSpec,
    Metrics,
    Resources,
    RestartPolicy,
    build_spec,
    merge,
    read_json,
    read_toml,
)

__all__ = [
    "Backend",
    "Container",
    "Host",
    "JobSpec",
    "Kubernetes",
    "Metrics",
    "Resources",
    "RestartPolicy",
    "build_spec",
    "merge",
    "read_json",
    "read_toml",
]

"""The specification of a job: plain data, checked before anything starts.

job.py has all fields, containers.py those for containers and Kubernetes, slurm.py those for Slurm,
fields.py the types of values, flag_values.py parses flags, messages.py describes invalid values,
secrets.py lists what is never recorded.
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
from launcher.spec.slurm import Slurm

__all__ = [
    "Backend",
    "Container",
    "Host",
    "JobSpec",
    "Kubernetes",
    "Metrics",
    "Resources",
    "RestartPolicy",
    "Slurm",
    "build_spec",
    "merge",
    "read_json",
    "read_toml",
]

"""The variables of a job whose values are never recorded or shown."""

from typing import Any

from launcher.spec.job import JobSpec

_SECRET = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "PRIVATE")


def without_secrets(spec: JobSpec) -> dict[str, Any]:
    """The job as JSON, without the values of variables whose names suggest a secret."""
    content = spec.model_dump(mode="json")
    for name in spec.environment:
        if is_secret(name):
            content["environment"][name] = "(not recorded)"
    return content


def is_secret(name: str) -> bool:
    return any(word in name.upper() for word in _SECRET)

"""Refusals of the API server as LauncherErrors: its own reason, and what to do.

LauncherError
├── ConflictError           an object of that name exists already
├── GoneError               the object no longer exists, or the version of a watch is too old
└── UsageError              a retry would fail too: no rights, no such kind, a quota, a wrong field
"""

import json
from typing import Any

from launcher.errors import LauncherError, MissingToolError, UsageError
from launcher.targets.kubernetes.kinds import KINDS, Resource


class ConflictError(LauncherError):
    """An object of that name exists, or has changed in the meantime."""


class GoneError(LauncherError):
    """The object, or the version of a list to watch from, no longer exists."""


def explain(error: Any, resource: Resource, namespace: str) -> LauncherError:
    """The error for an ApiException."""
    message = _message(error)
    if error.status == 409:
        return ConflictError(message)
    if error.status == 410:
        return GoneError(message)
    if error.status == 404:
        return _absent(error, resource, message)
    if error.status == 401:
        return UsageError(
            "the cluster rejects your credentials (401); log in again, or choose another --context"
        )
    if error.status == 403:
        return _forbidden(resource, namespace, message)
    if error.status in {400, 422}:
        return UsageError(f"the cluster refuses the {resource.kind}: {message}")
    return LauncherError(f"the cluster failed at {resource.plural} ({error.status}): {message}")


def unreachable(host: str, error: Exception) -> LauncherError:
    """The error for a connection that failed or broke."""
    reason = getattr(error, "reason", None) or error
    return LauncherError(
        f"no answer from the cluster at {host}: {reason}; see `kubectl cluster-info`, or choose "
        "another --context"
    )


def _forbidden(resource: Resource, namespace: str, message: str) -> UsageError:
    if "exceeded quota" in message:
        return UsageError(f"{message}; request less, or wait until other jobs have ended")
    if "PodSecurity" in message or "violates" in message:
        return UsageError(f"the namespace's pod security refuses the {resource.kind}: {message}")
    return UsageError(f"{message}; the rights it takes are in k8s/base/rbac.yaml ({namespace})")


def _absent(error: Any, resource: Resource, message: str) -> LauncherError:
    # An unknown path is answered in plain text, an unknown object with a Status that names it.
    if _status(error).get("details", {}).get("name"):
        return GoneError(message)
    kinds = [kind for kind in KINDS.values() if kind.resource.group == resource.group]
    install = kinds[0].install if kinds else ""
    if install:
        return MissingToolError(
            f"the cluster has no {resource.kind} ({resource.group}/{resource.version}): install "
            f"{install}, or use --kind job, which needs nothing"
        )
    return GoneError(message)


def _message(error: Any) -> str:
    message = _status(error).get("message") or str(error.body or error.reason or "").strip()
    return " ".join(message.split())


def _status(error: Any) -> dict[str, Any]:
    try:
        content = json.loads(error.body or "")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}

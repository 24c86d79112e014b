"""Pushes the last metrics of a short job to a Pushgateway, which Prometheus scrapes."""

from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import push_to_gateway

_SECONDS = 5.0


def push(registry: CollectorRegistry, gateway: str, run: str, instance: str) -> str | None:
    """Replaces the group (run, instance) at the gateway. Returns an error message, or None."""
    try:
        push_to_gateway(
            gateway,
            job="training",
            registry=registry,
            timeout=_SECONDS,
            grouping_key={"run": run, "instance": instance},
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return f"the metrics could not be pushed to {without_password(gateway)}: {reason}"
    return None


def without_password(url: str) -> str:
    """The address without user and password, for messages."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    return parts.netloc.rpartition("@")[2] or url

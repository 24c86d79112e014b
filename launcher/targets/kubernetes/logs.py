"""Reads the logs of pods line by line, across dropped connections."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import urllib3

from launcher.errors import LauncherError, UsageError
from launcher.targets.kubernetes.api_errors import GoneError
from launcher.targets.kubernetes.cluster import Cluster
from launcher.targets.kubernetes.kinds import POD, JobKind
from launcher.targets.kubernetes.manifests import Manifest

_POLL_SECONDS = 1.0
_UNREACHABLE_SECONDS = 120.0
_OVERLAP_SECONDS = 300  # the clocks of this machine and the node may differ


def leading_pod(cluster: Cluster, kind: JobKind, name: str, worker: int | None) -> Manifest | None:
    """The newest pod whose log has the output of all ranks, or that of one worker."""
    label = kind.leader if worker is None else kind.worker.format(worker)
    pods, _ = cluster.list(POD, labels=f"{kind.pods}={name},{label}")
    return max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)


def lines(cluster: Cluster, pod: Manifest, container: str, follow: bool) -> Iterator[str]:
    """The lines of a pod's log; with `follow` until the pod has ended.

    After a dropped connection it continues without losing or repeating a line. Raises
    LauncherError when the pod has no log or the cluster does not answer for two minutes.
    """
    name = pod["metadata"]["name"]
    last, lines_at_last = "", 0  # the newest timestamp read, and how many lines had it
    last_answer = time.monotonic()
    while True:
        whole = False
        try:
            pod = cluster.get(POD, name) or pod
            with cluster.log(name, container, follow, _seconds_since(last)) as response:
                last_answer, known = time.monotonic(), lines_at_last
                for line in _whole_lines(response):
                    stamp, _, text = line.partition(" ")
                    last_answer = time.monotonic()
                    if stamp < last:
                        continue
                    if stamp == last and known:
                        known -= 1
                        continue
                    lines_at_last = lines_at_last + 1 if stamp == last else 1
                    last, known = stamp, 0
                    yield text
            whole = True
        except UsageError as error:
            if not (follow and "waiting to start" in str(error)):
                raise
        except GoneError:
            raise
        except LauncherError:
            if time.monotonic() - last_answer > _UNREACHABLE_SECONDS:
                raise
        ended = not follow or pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
        if whole and ended:
            return
        time.sleep(_POLL_SECONDS)


def _whole_lines(response: Any) -> Iterator[str]:
    """Raises LauncherError when the connection breaks; a partial line is then discarded."""
    rest = b""
    try:
        for piece in response.stream(4096):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")
    except urllib3.exceptions.HTTPError as error:
        raise LauncherError(f"the log was cut: {error}") from None
    if rest:
        yield rest.decode(errors="replace")


def _seconds_since(stamp: str) -> int | None:
    """How far back to read so that no line is missed: the server takes whole seconds."""
    if not stamp:
        return None
    # Nanoseconds, of which the parser takes six digits.
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    then = datetime.fromisoformat(f"{whole}.{fraction[:6].ljust(6, '0')}").replace(tzinfo=UTC)
    return max(0, int((datetime.now(UTC) - then).total_seconds())) + _OVERLAP_SECONDS

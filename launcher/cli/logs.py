"""`launcher logs`: what the ranks have said, whole lines, prefixed; also while they say it."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer

from launcher.cli.run_flags import Context, Namespace, Output, RunId, Target, on_cluster
from launcher.errors import UsageError
from launcher.runs.reader import find_run, read_run

_SECONDS_BETWEEN_LOOKS = 0.3


def command(
    run: RunId = None,
    rank: Annotated[int | None, typer.Option(help="One rank only.")] = None,
    attempt: Annotated[
        int | None, typer.Option(help="0 is the first.", show_default="the newest")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it ends.")] = False,
    output: Output = Path("runs"),
    target: Target = None,
    namespace: Namespace = None,
    context: Context = None,
    worker: Annotated[
        int | None, typer.Option(help="On a cluster, one pod's own words.", show_default="leader")
    ] = None,
) -> None:
    """Print the logs of a run, each line with its rank."""
    if on_cluster(target):
        from launcher.cli import cluster_verbs
        from launcher.targets.kubernetes.cluster import Cluster

        cluster_verbs.logs(Cluster.connect(context, namespace), run, worker, rank, follow)
        return
    directory = find_run(output, run)
    state = read_run(directory)
    if rank is not None and rank not in state.ranks:
        raise UsageError(f"--rank: expected 0 to {len(state.ranks) - 1}. Received: {rank}")
    chosen = state.attempt if attempt is None else attempt
    if not (directory / "logs" / f"attempt-{chosen}").is_dir() and not follow:
        raise UsageError(f"no logs of attempt {chosen} in {directory}")
    readers: dict[Path, Reader] = {}
    while True:
        ended = not follow or read_run(directory).ended
        newest = read_run(directory).attempt if follow and attempt is None else chosen
        for path in _logs(directory, range(chosen, newest + 1), rank):
            reader = readers.setdefault(path, Reader(path))
            for line in reader.lines():
                sys.stdout.write(f"[{_label(path)}] {line}\n")
        sys.stdout.flush()
        if ended:
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)


class Reader:
    """Reads the whole lines of one log as it grows, its older part first, across rotations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._rest = ""

    def lines(self) -> Iterator[str]:
        """Whole lines that have come since the last call."""
        older = self._path.with_name(self._path.name + ".1")
        if self._file is None:
            if older.exists():
                yield from older.read_text(errors="replace").splitlines()
            self._file = _open(self._path)
        while self._file is not None:
            yield from self._new_lines(self._file)
            if not self._rotated(self._file):
                return
            yield from self._new_lines(self._file)
            self._file.close()
            self._file = _open(self._path)

    def _new_lines(self, file: TextIO) -> Iterator[str]:
        *lines, self._rest = (self._rest + file.read()).split("\n")
        yield from lines

    def _rotated(self, file: TextIO) -> bool:
        try:
            return Path(f"/proc/self/fd/{file.fileno()}").stat().st_ino != self._path.stat().st_ino
        except OSError:
            return False


def _open(path: Path) -> TextIO | None:
    try:
        return open(path, errors="replace")
    except OSError:
        return None


def _logs(directory: Path, attempts: range, rank: int | None) -> list[Path]:
    name = "*.log" if rank is None else f"rank-{rank}.log"
    found: list[Path] = []
    for attempt in attempts:
        found += sorted((directory / "logs" / f"attempt-{attempt}").glob(name), key=_order)
    return found


def _label(path: Path) -> str:
    return path.stem.removeprefix("rank-")


def _order(path: Path) -> tuple[int, str]:
    return len(path.stem), path.stem  # rank-10 after rank-9

"""What one rank runs in the fault tests: counts steps in lockstep with its peers, saves, resumes.

Standard library and the heartbeat only, so that it starts at once. A fault is a piece of Python,
run by one rank in one step of the first attempt: `--fault 'os.kill(os.getpid(), 9)' --rank 1`.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from launcher.atomic import replace_json
from launcher.heartbeat import Heartbeat

__all__ = ["signal", "socket", "subprocess"]  # for the faults


def main() -> int:
    options = _options()
    rank, size = (int(os.environ[f"LAUNCHER_{name}"]) for name in ("RANK", "WORLD_SIZE"))
    attempt = int(os.environ["LAUNCHER_ATTEMPT"])
    shared: Path = options.shared
    heartbeat = Heartbeat.from_environment()
    heartbeat.beat("starting")
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    if options.loader:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    done = _resume(shared)
    print(f"starts at step {done}", flush=True)
    while done < options.steps:
        time.sleep(options.seconds)
        done += 1
        if rank == options.rank and done == options.at and attempt < options.times:
            (shared / f"fault-{attempt}").write_text(repr(time.time()))
            exec(options.fault)
        if not _wait_for_peers(shared, attempt, rank, size, done, stopping):
            done -= 1
        heartbeat.beat("training", done, loss=1 / done, images_per_second=100.0)
        print(f"step {done}", flush=True)
        if stopping or done % options.save_every == 0:
            heartbeat.beat("saving", done)
            if rank == 0:
                replace_json(shared / "checkpoint.json", {"step": done, "attempt": attempt})
                with open(shared / "saves", "a") as saves:
                    saves.write(f"{attempt}\n")
            heartbeat.beat("training", done)
        if stopping:
            (shared / f"stopped-{rank}").write_text(str(done))
            return 143
    heartbeat.beat("done", done)
    return 0


def _wait_for_peers(
    shared: Path, attempt: int, rank: int, size: int, step: int, stopping: list[int]
) -> bool:
    """As in an all-reduce: no rank passes a step before all have reached it."""
    (shared / f"at-{attempt}-{rank}").write_text(str(step))
    while not stopping:
        reached = [_read(shared / f"at-{attempt}-{peer}") for peer in range(size)]
        if min(reached) >= step:
            return True
        time.sleep(0.01)
    return False


def _read(path: Path) -> int:
    try:
        return int(path.read_text() or 0)
    except FileNotFoundError:
        return 0


def _resume(shared: Path) -> int:
    path = shared / "checkpoint.json"
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--fault", default="pass")
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--at", type=int, default=5)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--loader", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

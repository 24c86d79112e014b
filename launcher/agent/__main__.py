"""`python -m launcher.agent`: runs one command and ends its whole process tree.

Reads a process spec, then commands, from standard input: `end SECONDS`, `kill`, `stacks`, `tick`.
Writes frames to standard output. When standard input closes, the launcher has died, and the agent
ends the tree within four seconds. Under mpirun SIGUSR2 replaces `end`, SIGUSR1 `stacks`. There the
spec is in a variable (`--mpi`) or, if mpirun must not choose the command, in a file (`--pinned`).
"""

import errno
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from launcher import heartbeat
from launcher.agent import shared_signals, tree
from launcher.agent.channel import Channel
from launcher.agent.child import Child, reap, wake_on_signals
from launcher.agent.pinned import pinned_process
from launcher.agent.process_spec import ProcessSpec

_STDIN, _STDOUT = 0, 1
_POLL_SECONDS = 0.2
_ORPHAN_GRACE = 3.5  # the launcher was killed: everything ends within five seconds
_ABORT_GRACE = 2.0  # SIGTERM from outside or from mpirun, which sends SIGKILL after three seconds
_LEFTOVER_GRACE = 0.5  # the rank has ended; the processes it left have nothing to save
_READER_SECONDS = 60.0  # a launcher on this machine may be busy, or stopped by Ctrl-Z
_SHARED_SECONDS = 0.5  # within which a SIGTERM to all processes has reached all of them
_UNKILLABLE_SECONDS = 3.0  # a process that waits for an unreachable disk does not end on SIGKILL
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_COMMAND_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


class Agent:
    """Runs one process to its end; `run` returns the exit code of the command."""

    def __init__(self, spec: ProcessSpec, commanded: bool) -> None:
        self._spec = spec
        self._commands = b""
        self._channel = Channel(spec.rank, spec.raw)
        self._input_open = commanded
        self._orphaned = False
        self._parent = os.getppid()
        self._shares_signals = shared_signals.reach_every_process()
        self._last_command = time.monotonic()
        self._last_tick = 0.0
        self._last_poll = 0.0
        self._beat: heartbeat.Beat | None = None
        self._program_exit: tuple[float, int] | None = None
        self._code: int | None = None
        self._ended_at = 0.0
        self._deadline: float | None = None  # when SIGKILL follows the SIGTERM
        self._end_requested = False
        self._signal_at: float | None = None  # when the rank receives the SIGTERM
        self._only_child_signalled = False
        self._stacks_of: list[int] = []
        self._out_of_memory: str | None = None
        self._oom_kills = tree.kernel_oom_kills()

    def run(self) -> int:
        tree.adopt_orphans()
        self._signals = wake_on_signals([signal.SIGCHLD, *_END_SIGNALS, *_COMMAND_SIGNALS])
        if self._shares_signals:
            shared_signals.hold_back()
        try:
            self._child = Child(self._spec)
        except OSError as error:
            self._channel.report(refused=_refusal(error, self._spec))
            self._channel.flush(2.0)
            return 127 if error.errno == errno.ENOENT else 126
        host, pid = socket.gethostname(), self._child.pid
        self._channel.report(up=pid, started=_start_of(pid), host=host)
        for descriptor in (_STDIN, _STDOUT):
            os.set_blocking(descriptor, False)
        while not self._finished():
            self._poll()
        with self._child.directories:
            self._report_changes()
            self._report_end()
            self._channel.flush(self._spec.silence or _READER_SECONDS)
        if self._orphaned and self._spec.keepalive and os.getppid() == self._parent:
            # On a host that is cut off, mpirun's daemon would otherwise keep running for minutes.
            tree.send([self._parent], signal.SIGKILL)
        assert self._code is not None
        return 128 - self._code if self._code < 0 else self._code

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        if self._input_open:
            poll.register(_STDIN, select.POLLIN)
        if self._channel.waiting:
            poll.register(_STDOUT, select.POLLOUT)
        if not self._channel.full:  # a slow reader slows the rank, not the agent
            for descriptor in self._child.pipes:
                poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(_POLL_SECONDS * 1000):
            if descriptor == self._signals:
                self._take_signals()
            elif descriptor == _STDIN:
                self._take_commands()
            elif descriptor == _STDOUT:
                self._channel.write()
            else:
                self._channel.pass_on(descriptor, self._child.pipes)
        if self._shares_signals:
            self._take_shared_signals()
        now = time.monotonic()
        if os.getppid() != self._parent:
            self._lose_launcher()
        if self._spec.silence is not None:
            if now - self._last_command > self._spec.silence:
                self._lose_launcher()
            if now - self._last_tick > 1.0:
                self._last_tick = now
                self._channel.report(tick=True)
        self._watch_child(now)
        if now - self._last_poll > _POLL_SECONDS:
            self._last_poll = now
            self._report_changes()
            self._watch_memory()
            if self._stacks_of:
                tree.send([self._stacks_of.pop(0)], signal.SIGUSR1)
        self._channel.write()

    def _watch_child(self, now: float) -> None:
        status = reap().get(self._child.pid)
        if status is not None:
            self._code, self._ended_at = self._child.reaped(status), time.time()
            killed = self._code == -signal.SIGKILL and self._deadline is None
            if killed and tree.kernel_oom_kills() > self._oom_kills:
                self._out_of_memory = self._out_of_memory or "kernel"
            if not self._end_requested or self._only_child_signalled:
                tree.send(tree.descendants(os.getpid()), signal.SIGTERM)
                self._deadline = min(now + _LEFTOVER_GRACE, self._deadline or now + _LEFTOVER_GRACE)
        if self._deadline is not None and now > self._deadline:
            tree.send(tree.descendants(os.getpid()), signal.SIGKILL)

    def _watch_memory(self) -> None:
        limit = self._spec.memory
        if limit is None or self._code is not None or self._out_of_memory is not None:
            return
        below = tree.descendants(os.getpid())
        if tree.resident_bytes(below) > limit:
            self._out_of_memory = "limit"
            tree.send(below, signal.SIGKILL)

    def _finished(self) -> bool:
        if self._code is None:
            return False
        left = tree.descendants(os.getpid())
        given_up = self._deadline and time.monotonic() > self._deadline + _UNKILLABLE_SECONDS
        return bool(given_up) or not (left or self._child.pipes)

    def _end(self, grace: float) -> None:
        """SIGTERM now, SIGKILL after `grace` seconds; a shorter grace may follow a longer one."""
        deadline = time.monotonic() + grace
        if self._end_requested:
            self._deadline = min(deadline, self._deadline or deadline)
            return
        self._end_requested, self._deadline = True, deadline
        if self._shares_signals:
            self._signal_at = time.monotonic() + _SHARED_SECONDS
        else:
            self._signal_end()

    def _signal_end(self) -> None:
        self._signal_at = None
        if self._spec.daemon:
            # Killed first, so that mpirun learns of the lost host and of nothing else.
            tree.send([self._child.pid], signal.SIGKILL)
            return
        if self._spec.raw:
            # mpirun forwards SIGUSR2 and keeps forwarding output; on SIGTERM it only sleeps.
            tree.send([self._child.pid], signal.SIGUSR2)
            return
        below = tree.descendants(os.getpid())
        # A process that handles SIGTERM ends its own children, which it may need to save; a shell
        # does not handle SIGTERM and exits without forwarding it.
        if tree.catches(self._child.pid, signal.SIGTERM):
            self._only_child_signalled = True
            below = [self._child.pid]
        tree.send(below, signal.SIGTERM)

    def _lose_launcher(self) -> None:
        self._input_open = False
        if not self._orphaned:
            self._orphaned = True
            self._end(min(self._spec.grace, _ORPHAN_GRACE))

    def _take_commands(self) -> None:
        try:
            data = os.read(_STDIN, 65536)
        except BlockingIOError:
            return
        if not data:
            self._lose_launcher()
            return
        self._last_command = time.monotonic()
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            word, _, argument = line.decode().partition(" ")
            if word == "end":
                self._end(float(argument))
            elif word == "kill":
                self._end(0.0)
            elif word == "stacks":
                self._dump_stacks()

    def _take_signals(self) -> None:
        for number in os.read(self._signals, 4096):
            if number in _END_SIGNALS:
                self._end(min(self._spec.grace, _ABORT_GRACE))
            elif number == signal.SIGUSR2:
                self._end(self._spec.grace)
            elif number == signal.SIGUSR1:
                self._dump_stacks()

    def _take_shared_signals(self) -> None:
        for sender in shared_signals.senders():
            if sender == self._parent:  # mpirun or its daemon, which ends the job
                self._end(min(self._spec.grace, _ABORT_GRACE))
            else:
                # The rank has received it too. The launcher commands how long it may save.
                self._end_requested = self._only_child_signalled = True
                self._signal_at = None
        if self._signal_at is not None and time.monotonic() > self._signal_at:
            self._signal_end()

    def _dump_stacks(self) -> None:
        if self._spec.raw:
            tree.send([self._child.pid], signal.SIGUSR1)  # mpirun forwards it to its ranks
            return
        below = tree.descendants(os.getpid())
        # One per poll: the processes share a pipe, and their lines would interleave.
        self._stacks_of = [pid for pid in below if tree.catches(pid, signal.SIGUSR1)]
        if self._child.pid not in self._stacks_of and self._program_exit is None:
            self._channel.add_line(
                f"no Python stack: process {self._child.pid} does not answer SIGUSR1"
            )

    def _report_changes(self) -> None:
        beat = heartbeat.read(self._child.heartbeat)
        if beat is not None and beat != self._beat:
            self._beat = beat
            self._channel.report(
                beat=[beat.phase, beat.step, beat.saved, beat.time, dict(beat.numbers)]
            )
        program_exit = self._child.program_exit()
        if program_exit != self._program_exit and not self._end_requested:
            self._program_exit = program_exit
            self._channel.report(program_exit=program_exit)

    def _report_end(self) -> None:
        self._channel.report(
            exit=self._code,
            at=self._ended_at,
            asked=self._end_requested,
            out_of_memory=self._out_of_memory,
            survivors=tree.descendants(os.getpid()),
        )


def _refusal(error: OSError, spec: ProcessSpec) -> str:
    if not os.path.isdir(spec.cwd):
        return f"no such working directory: {spec.cwd}"
    if error.errno == errno.ENOENT:
        return f"command not found: {spec.argv[0]}"
    return f"{spec.argv[0]} cannot be run: {error.strerror}"


def _start_of(pid: int) -> float:
    try:
        return tree.started_at(pid)
    except OSError:
        return 0.0


def _listen_to(keepalive: list[tuple[str, int]]) -> bool:
    """Connects standard input to the first keepalive server that answers, if there is one."""
    for host, port in keepalive:
        try:
            with socket.create_connection((host, port), timeout=5) as connection:
                os.dup2(connection.fileno(), _STDIN)
        except OSError:
            continue
        return True
    return False


def main() -> None:
    how = sys.argv[1:2]
    if how in (["--mpi"], ["--pinned"]):
        pinned = how == ["--pinned"]
        spec = pinned_process(Path(sys.argv[2])) if pinned else ProcessSpec.from_mpi()
        # The agent reports a failure to the supervisor; mpirun itself would end the peers at once.
        Agent(spec, commanded=_listen_to(spec.keepalive)).run()
        exit_code = 0
    else:
        # Unbuffered, so that no byte after the first line is consumed.
        with open(_STDIN, "rb", buffering=0, closefd=False) as lines:
            spec = ProcessSpec.decode(lines.readline().decode())
        exit_code = Agent(spec, commanded=True).run()
    sys.exit(exit_code)


if __name__ == "__main__":
    main()

"""One attempt at a job: all its processes, from the start of the first to the end of the last."""

import re
import selectors
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from launcher.agent.frames import REPORT, STDERR, TRANSPORT, Frame
from launcher.agent.plan import Plan
from launcher.agent.process_spec import TRANSPORT_RANK
from launcher.heartbeat import Beat
from launcher.runs.events import Event, Kind
from launcher.supervision.causes import Exit
from launcher.supervision.member import Member, RankState

_LOST_BY_MPIRUN = re.compile(r"Remote daemon: .* on node (\S+)")
_UNREACHABLE = re.compile(
    "No route to host|Connection timed out|Could not resolve hostname|Network is unreachable"
)
_TICK_SECONDS = 1.0
_CONNECT_SECONDS = 15.0  # ssh may be slow to connect
_CLOSING_SECONDS = 1.5  # what an agent needs after the last of its processes is gone


class Attempt:
    """Starts the processes of a plan, follows them with `poll`, ends them with `end` or `close`."""

    def __init__(
        self, number: int, plan: Plan, silence: float, emit: Callable[[Event], None]
    ) -> None:
        self.number = number
        self.states = [RankState(rank, host) for rank, host in enumerate(plan.hosts)]
        self.output_lines = 0
        self.ending = False
        self._plan = plan
        self._silence = silence
        self._emit = emit
        self._members: list[Member] = []
        self._selector = selectors.DefaultSelector()
        self._kill_at: float | None = None
        self._last_tick = 0.0
        self._lost: list[Member] = []

    @property
    def ended(self) -> bool:
        return not self._members

    @property
    def failed(self) -> list[Exit]:
        """The exits with a code other than 0."""
        ends = [state.end for state in self.states]
        return [ended for ended in ends if ended is not None and ended.code != 0]

    @property
    def last_report(self) -> float:
        """Monotonic time of the last report from a host that was lost, else minus infinity."""
        return max((lost.last_report for lost in self._lost), default=float("-inf"))

    def start(self) -> None:
        """Starts all processes. Raises OSError if one cannot be started; `close` ends the rest."""
        for process in self._plan.processes:
            self._members.append(member := Member(process))
            self._selector.register(member.output, selectors.EVENT_READ, member)

    def wake_on(self, descriptor: int) -> None:
        """Lets `poll` return as soon as the descriptor can be read."""
        self._selector.register(descriptor, selectors.EVENT_READ, None)

    def poll(self, seconds: float) -> None:
        """Waits up to `seconds` for reports, and processes all that have arrived."""
        for key, _ in self._selector.select(seconds):
            if key.data is not None:
                self._read(key.data)
        now = time.monotonic()
        if now - self._last_tick > _TICK_SECONDS:
            self._last_tick = now
            for member in self._members:
                if member.plan.remote:
                    member.send("tick")
        for member in list(self._members):
            patience = self._silence + (0 if member.reported else _CONNECT_SECONDS)
            if member.plan.remote and now - member.last_report > patience:
                self._lose(member, f"has not reported for {now - member.last_report:.0f} s")
            elif self._kill_at is not None and now > self._kill_at:
                member.kill()

    def end(self, grace: float) -> None:
        """Sends SIGTERM to every rank now, and SIGKILL to what remains after `grace` seconds."""
        self.ending = True
        for member in self._members:
            member.send(f"end {grace}")
        deadline = time.monotonic() + grace + _CLOSING_SECONDS
        self._kill_at = min(deadline, self._kill_at or deadline)

    def dump_stacks(self) -> None:
        for member in self._members:
            member.send("stacks")

    def close(self) -> None:
        """Kills every process that still runs, and closes every descriptor."""
        if not self.ended:
            self.end(0.0)
        while not self.ended:
            self.poll(0.1)
        self._selector.close()

    def _read(self, member: Member) -> None:
        frames, more = member.read()
        for frame in frames:
            self._take(member, frame)
        if not more:
            self._finish(member)

    def _take(self, member: Member, frame: Frame) -> None:
        if frame.kind == TRANSPORT:
            member.transport_tail.append(frame.text)
            self._event("output", None, stream="stderr", text=frame.text)
            if lost := _LOST_BY_MPIRUN.search(frame.text):
                self._lost_by_mpirun(member, lost[1])
        elif frame.kind == REPORT:
            self._take_report(member, frame.rank or 0, frame.report)
        elif frame.rank is not None:
            self.output_lines += 1
            self.states[frame.rank].tail.append(frame.text)
            stream = "stderr" if frame.kind == STDERR else "stdout"
            self._event("output", frame.rank, stream=stream, text=frame.text)

    def _take_report(self, member: Member, rank: int, report: dict[str, Any]) -> None:
        member.reported = True
        if rank == TRANSPORT_RANK:
            if "refused" in report:
                member.transport_tail.append(report["refused"])
            return
        state = self.states[rank]
        if "up" in report:
            up = {"pid": report["up"], "started": report["started"]}
            self._event("rank_up", rank, **up, host=state.host)
        elif "beat" in report:
            before, state.beat = state.beat, Beat(*report["beat"])
            beat = {"phase": state.beat.phase, "step": state.step, **state.beat.numbers}
            self._event("beat", rank, **beat)
            if state.beat.saved not in {None, before.saved if before is not None else None}:
                self._event("checkpoint", rank, step=state.beat.saved)
        elif "program_exit" in report:
            self._take_program_exit(state, report["program_exit"])
        elif "exit" in report:
            known = {name: report[name] for name in ("asked", "out_of_memory")}
            self._exit(state, report["exit"], report["at"], **known)
        elif "refused" in report:
            self._exit(state, 127, time.time(), refused=report["refused"])

    def _take_program_exit(self, state: RankState, exited: tuple[float, int] | None) -> None:
        """The rank's program has ended, or its script has started the next program."""
        if exited is None:
            state.program_exit = None
            return
        at, code = exited
        leaving = state.beat is not None and state.beat.phase == "leaving"
        state.program_exit = Exit(
            state.rank, state.host, code, at, step=state.step, leaving=leaving, lingering=True
        )

    def _exit(self, state: RankState, code: int, at: float, **known: Any) -> None:
        tail = known.pop("tail", tuple(state.tail))
        known["leaving"] = state.beat is not None and state.beat.phase == "leaving"
        if state.program_exit is not None and code >= 0:
            at = min(at, state.program_exit.at)
        state.exit = Exit(state.rank, state.host, code, at, tail=tail, step=state.step, **known)
        self._event("rank_ended", state.rank, exit_code=state.exit.status, asked=state.exit.asked)

    def _finish(self, member: Member) -> None:
        """The process of the plan has closed its output: it has ended, or will within a second."""
        self._remove(member)
        code = member.wait()
        member.close()
        silent = [rank for rank in member.plan.ranks if self.states[rank].exit is None]
        if silent and member.plan.remote and code == 255:
            self._lost.append(member)
            reason = member.transport_tail[-1] if member.transport_tail else "ssh has ended"
            self._record_lost(member.plan.ranks, f"was lost: {reason}")
            return
        for line in member.transport_tail if silent else ():
            if _UNREACHABLE.search(line):
                self._lost.append(member)
                self._record_lost(silent, f"was lost: {line.strip()}")
                return
        for rank in silent:
            # No report of how the rank ended: its agent was killed, or mpirun gave up.
            tail = tuple(self.states[rank].tail) or tuple(member.transport_tail)
            self._exit(self.states[rank], code or 1, time.time(), tail=tail, silent=True)

    def _lose(self, member: Member, reason: str) -> None:
        self._remove(member)
        member.kill()
        with suppress(OSError):
            member.wait()
        member.close()
        self._lost.append(member)
        self._record_lost(member.plan.ranks, reason)

    def _lost_by_mpirun(self, member: Member, host: str) -> None:
        """mpirun reports a lost host, then often waits forever: its ranks count as lost now."""
        self._lost.append(member)
        # The name of a container goes on with @ and its id, which mpirun does not know.
        names = {rank: self.states[rank].host for rank in member.plan.ranks}
        gone = [rank for rank, name in names.items() if f"{name}@".startswith(f"{host}@")]
        self._record_lost(gone or member.plan.ranks, "was lost: mpirun has no connection to it")

    def _record_lost(self, ranks: Sequence[int], reason: str) -> None:
        for rank in ranks:
            if self.states[rank].exit is None:
                self._exit(self.states[rank], 255, time.time(), asked=self.ending, lost=reason)

    def _remove(self, member: Member) -> None:
        self._selector.unregister(member.output)
        self._members.remove(member)

    def _event(self, kind: Kind, rank: int | None, **details: Any) -> None:
        self._emit(Event(kind, self.number, rank, details))

"""Every container of a job but the first: reports to the leader, runs its ranks when told to.

It runs its own command; the leader only says when, and with which world.
"""

import os
import select
import selectors
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from launcher.agent.command import own_agent
from launcher.agent.process_spec import ProcessSpec
from launcher.errors import LauncherError
from launcher.placement.backends import gloo_environment, tf_environment
from launcher.placement.process_specs import rank_process
from launcher.placement.slots import Slot, numa_nodes
from launcher.rendezvous.network import interface_of, own_address_toward
from launcher.rendezvous.wire import Arrival, Contact, WireError, ask, receive
from launcher.runs.processes import RUN_DIRECTORY
from launcher.spec import JobSpec
from launcher.supervision.member import clean_environment
from launcher.supervision.stop import StopRequests

_SECONDS_BETWEEN_WORDS = 1.0
_LOOK_SECONDS = 0.2
_ENDING_SECONDS = 8.0  # an earlier agent ends its rank within its grace, then goes

# The variables that may come from the first container; values of others could name files.
_MEETING = {**gloo_environment(Slot("", 0, 1, 0, 1, 0, 1), "", 0, ""), **tf_environment(0, ())}
_TAKEN = {*_MEETING, "LAUNCHER_ATTEMPT", "LAUNCHER_WORLD_SIZE"}


class Worker:
    """Runs until the job has ended; `head` is the name and port of the leader."""

    def __init__(self, spec: JobSpec, head: tuple[str, int], index: int | None) -> None:
        self._spec, self._head, self._index = spec, head, index
        self._contact: Contact | None = None
        self._agents: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def run(self, stop: StopRequests) -> int:
        """Returns the job's exit code, or 143 when told to stop.

        Raises LauncherError when the leader has not answered for `join_timeout` seconds.
        """
        try:
            return self._stay(stop)
        finally:
            if self._server is not None:
                self._server.shutdown()
                self._server.server_close()
            self._end_ranks(0.0)

    def _stay(self, stop: StopRequests) -> int:
        heard, trouble = time.monotonic(), ""
        while not stop.count:
            try:
                contact = ask(self._head, self._arrival())
                trouble = contact.answer.refused or ""
            except (OSError, WireError) as error:
                trouble = str(error)
            if not trouble:
                self._welcome(contact)
                heard = time.monotonic()
                if contact.answer.result is not None:
                    self._end_ranks(self._spec.grace)
                    return contact.answer.result
            patience = self._spec.container.join_timeout
            if time.monotonic() - heard > patience:
                where = f"{self._head[0]}:{self._head[1]}"
                raise LauncherError(f"lost host: {where} for {patience:g} s: {trouble}")
            select.select([stop.descriptor], [], [], _SECONDS_BETWEEN_WORDS)
        # The ranks save together: one that is told to stop informs the others.
        for agent in self._living():
            with suppress(psutil.Error):
                for rank in psutil.Process(agent.pid).children():
                    rank.send_signal(signal.SIGTERM)
        self._end_ranks(self._spec.save_timeout)
        return stop.exit_code

    def serve(self, connection: socket.socket, address: str) -> None:
        """Runs one rank for the leader, and passes its output and reports on."""
        contact = self._contact
        if contact is None or address != contact.head_address:
            return  # a stranger, or a leader that this worker does not know yet
        process = self._process(receive(connection), contact)
        with self._lock:
            earlier = self._agents.get(process.rank)
            if earlier is not None:
                _end(earlier, _ENDING_SECONDS)
            agent = self._agents[process.rank] = subprocess.Popen(
                own_agent(),
                bufsize=0,
                env=clean_environment(),
                stdin=subprocess.PIPE,
                stdout=connection.fileno(),
                start_new_session=True,
            )
        try:
            assert agent.stdin is not None
            agent.stdin.write(process.encode().encode() + b"\n")
            _carry(connection, agent)
        finally:
            _end(agent, _ENDING_SECONDS)

    def _arrival(self) -> Arrival:
        if self._server is None:
            # Only once the leader's name resolves: the network that leads there is the one to use.
            self._server = _Server((own_address_toward(self._head[0]), 0), _handler(self))
            serve = self._server.serve_forever
            threading.Thread(target=serve, args=(0.1,), daemon=True).start()
        port, slots = self._server.server_address[1], self._spec.container.slots
        return Arrival(self._spec.name, socket.gethostname(), port, slots, self._index)

    def _welcome(self, contact: Contact) -> None:
        if self._contact is None or contact.answer.index != self._contact.answer.index:
            print(
                f"launcher: worker {contact.answer.index} of {self._spec.name}, "
                f"led by {self._head[0]} ({contact.head_address})",
                file=sys.stderr,
                flush=True,
            )
        self._contact = contact

    def _process(self, told: dict[str, Any], contact: Contact) -> ProcessSpec:
        """The process of one rank: our command, with the world as the leader sees it."""
        spec, size = self._spec, self._spec.container.slots
        try:
            rank, local_rank = int(told["rank"]), int(told["local_rank"])
            world = {
                name: str(told["environment"][name]) for name in _TAKEN & {*told["environment"]}
            }
            run = told["environment"].get(RUN_DIRECTORY)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise WireError("expected the process of a rank") from None
        if not 0 <= local_rank < size or rank < 0:
            raise WireError(f"expected one of {size} local ranks. Received: {local_rank}")
        if run is not None:
            world[RUN_DIRECTORY] = str(spec.output.absolute() / Path(str(run)).name)
        if "HOROVOD_GLOO_IFACE" in world:
            world["HOROVOD_GLOO_IFACE"] = interface_of(contact.own_address)
        slot = Slot(socket.gethostname(), rank, rank + 1, local_rank, size, 0, 1)
        return rank_process(spec, slot, numa_nodes(), world, silence=spec.silence_timeout)

    def _living(self) -> list[subprocess.Popen[bytes]]:
        with self._lock:
            return [agent for agent in self._agents.values() if agent.poll() is None]

    def _end_ranks(self, patience: float) -> None:
        limit = time.monotonic() + patience
        while self._living() and time.monotonic() < limit:
            time.sleep(_LOOK_SECONDS)
        for agent in self._living():
            _end(agent, _ENDING_SECONDS)


def _carry(connection: socket.socket, agent: subprocess.Popen[bytes]) -> None:
    """Passes commands on to the agent until it or the connection ends; the agent answers itself."""
    assert agent.stdin is not None
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while agent.poll() is None:
            for _ in selector.select(_LOOK_SECONDS):
                try:
                    data = connection.recv(65536)
                    if not data:
                        return
                    agent.stdin.write(data)
                except BlockingIOError:
                    continue  # the agent has made the shared pipe non-blocking
                except (OSError, ValueError):  # ValueError: the agent is being ended meanwhile
                    return


def _end(agent: subprocess.Popen[bytes], seconds: float) -> None:
    """An agent whose input closes ends its rank, then itself; one that does not is killed."""
    assert agent.stdin is not None
    with suppress(OSError):
        agent.stdin.close()
    try:
        agent.wait(seconds)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def _handler(worker: Worker) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError, WireError):
                worker.serve(self.request, self.client_address[0])

    return Handler

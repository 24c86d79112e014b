"""Every container of a job but the first: joins the leader, and runs its ranks on request.

It runs its own command; the leader decides when, and assigns ranks and peers.
"""

import os
import select
import selectors
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from launcher.agent import shared_signals
from launcher.agent.command import own_agent
from launcher.agent.process_spec import TRANSPORT_RANK, ProcessSpec
from launcher.errors import LauncherError
from launcher.placement.backends import gloo_environment, tf_environment
from launcher.placement.process_specs import rank_process
from launcher.placement.slots import Slot, numa_nodes
from launcher.rendezvous.mpi_worker import daemon_process
from launcher.rendezvous.network import interface_of, own_address_toward
from launcher.rendezvous.wire import Exchange, JoinRequest, WireError, ask, receive
from launcher.runs.processes import RUN_DIRECTORY
from launcher.spec import JobSpec
from launcher.supervision.member import clean_environment
from launcher.supervision.stop import StopRequests

_REQUEST_SECONDS = 1.0
_POLL_SECONDS = 0.2
_END_SECONDS = 8.0  # an agent ends its rank within the grace period, then itself

# The variables that the first container may set; others could name files.
_PEER_VARIABLES = {
    **gloo_environment(Slot("", 0, 1, 0, 1, 0, 1), "", 0, ""),
    **tf_environment(0, ()),
}
_ACCEPTED_VARIABLES = {*_PEER_VARIABLES, "LAUNCHER_ATTEMPT", "LAUNCHER_WORLD_SIZE"}


class Worker:
    """Runs until the job has ended; `head` is the name and port of the leader."""

    def __init__(self, spec: JobSpec, head: tuple[str, int], index: int | None) -> None:
        self._spec, self._head, self._index = spec, head, index
        self._exchange: Exchange | None = None
        self._agents: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def run(self, stop: StopRequests) -> int:
        """Returns the job's exit code, or 143 after a SIGTERM.

        Raises LauncherError when the leader has not accepted the worker for `join_timeout` seconds.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="launcher-worker-") as directory:
                self._directory = Path(directory)
                return self._run_until_result(stop)
        finally:
            if self._server is not None:
                self._server.shutdown()
                self._server.server_close()
            self._end_ranks(0.0)

    def _run_until_result(self, stop: StopRequests) -> int:
        last_reply, problem = time.monotonic(), ""
        while not stop.count:
            try:
                exchange = ask(self._head, self._request())
                problem = exchange.reply.refused or ""
            except (OSError, WireError) as error:
                problem = str(error)
            if not problem:
                self._accepted(exchange)
                last_reply = time.monotonic()
                if exchange.reply.result is not None:
                    self._end_ranks(self._spec.grace)
                    return exchange.reply.result
            patience = self._spec.container.join_timeout
            if time.monotonic() - last_reply > patience:
                where = f"{self._head[0]}:{self._head[1]}"
                raise LauncherError(
                    f"lost host: {where} has not accepted this worker for {patience:g} s: {problem}"
                )
            select.select([stop.descriptor], [], [], _REQUEST_SECONDS)
        # The ranks save together: one that receives SIGTERM informs the others.
        agents = [] if shared_signals.reach_every_process() else [*self._agents.items()]
        for number, agent in agents:
            with suppress(psutil.Error):
                for rank in _ranks_of(number, psutil.Process(agent.pid)):
                    rank.send_signal(signal.SIGTERM)
        self._end_ranks(self._spec.save_timeout)
        return stop.exit_code

    def serve(self, connection: socket.socket, address: str) -> None:
        """Runs one rank for the leader, and forwards its output and reports."""
        exchange = self._exchange
        if exchange is None or address != exchange.head_address:
            return  # not the leader, or a leader that has not accepted this worker yet
        received = receive(connection)
        if isinstance(received.get("daemon"), dict):
            process = self._daemon(received["daemon"], exchange)
        else:
            process = self._process(received, exchange)
        with self._lock:
            earlier = self._agents.get(process.rank)
            if earlier is not None:
                _end(earlier, _END_SECONDS)
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
            _forward_commands(connection, agent)
        finally:
            _end(agent, _END_SECONDS)

    def _request(self) -> JoinRequest:
        if self._server is None:
            # Once the leader's name resolves: listen on the network that leads to it.
            self._server = _Server((own_address_toward(self._head[0]), 0), _handler(self))
            serve = self._server.serve_forever
            threading.Thread(target=serve, args=(0.1,), daemon=True).start()
        port, slots = self._server.server_address[1], self._spec.container.slots
        return JoinRequest(self._spec.name, socket.gethostname(), port, slots, self._index)

    def _accepted(self, exchange: Exchange) -> None:
        if self._exchange is None or exchange.reply.index != self._exchange.reply.index:
            print(
                f"launcher: worker {exchange.reply.index} of {self._spec.name}, "
                f"led by {self._head[0]} ({exchange.head_address})",
                file=sys.stderr,
                flush=True,
            )
        self._exchange = exchange

    def _process(self, received: dict[str, Any], exchange: Exchange) -> ProcessSpec:
        """The process of one rank: this worker's command, with the leader's rank and peers."""
        spec, size = self._spec, self._spec.container.slots
        try:
            rank, local_rank = int(received["rank"]), int(received["local_rank"])
            world = {
                name: str(received["environment"][name])
                for name in _ACCEPTED_VARIABLES & {*received["environment"]}
            }
            run = received["environment"].get(RUN_DIRECTORY)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise WireError("expected the process of a rank") from None
        if not 0 <= local_rank < size or rank < 0:
            raise WireError(f"expected one of {size} local ranks. Received: {local_rank}")
        if run is not None:
            world[RUN_DIRECTORY] = str(spec.output.absolute() / Path(str(run)).name)
        if "HOROVOD_GLOO_IFACE" in world:
            world["HOROVOD_GLOO_IFACE"] = interface_of(exchange.own_address)
        slot = Slot(socket.gethostname(), rank, rank + 1, local_rank, size, 0, 1)
        return rank_process(spec, slot, numa_nodes(), world, silence=spec.silence_timeout)

    def _daemon(self, received: dict[str, str], exchange: Exchange) -> ProcessSpec:
        """mpirun's daemon, with the parameters that the leader's mpirun has sent."""
        accepted = _ACCEPTED_VARIABLES - _PEER_VARIABLES.keys()
        return daemon_process(self._spec, received, exchange, accepted, self._directory)

    def _running_agents(self) -> list[subprocess.Popen[bytes]]:
        with self._lock:
            return [agent for agent in self._agents.values() if agent.poll() is None]

    def _end_ranks(self, patience: float) -> None:
        limit = time.monotonic() + patience
        while self._running_agents() and time.monotonic() < limit:
            time.sleep(_POLL_SECONDS)
        for agent in self._running_agents():
            _end(agent, _END_SECONDS)


def _forward_commands(connection: socket.socket, agent: subprocess.Popen[bytes]) -> None:
    """Forwards commands to the agent until it or the connection ends; the agent writes replies."""
    assert agent.stdin is not None
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while agent.poll() is None:
            for _ in selector.select(_POLL_SECONDS):
                try:
                    data = connection.recv(65536)
                    if not data:
                        return
                    agent.stdin.write(data)
                except BlockingIOError:
                    continue  # the agent has made the shared pipe non-blocking
                except (OSError, ValueError):  # ValueError: another thread has closed the pipe
                    return


def _ranks_of(number: int, agent: psutil.Process) -> list[psutil.Process]:
    """The process of the rank of an agent, or those of all ranks below mpirun's daemon."""
    if number != TRANSPORT_RANK:
        return agent.children()
    agents = [below for daemon in agent.children() for below in daemon.children()]
    return [rank for below in agents for rank in below.children()]


def _end(agent: subprocess.Popen[bytes], seconds: float) -> None:
    """Closes the agent's input, upon which it ends its rank and itself; else kills it."""
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

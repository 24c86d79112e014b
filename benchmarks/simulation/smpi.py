"""Runs all_reduces.c on a simulated cluster with SimGrid's SMPI (Degomme et al., 2017).

SMPI runs real MPI programs; only the network is simulated, by a flow model with contention
(https://doi.org/10.1109/TPDS.2017.2669305).
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = Path(__file__).with_name("all_reduces.c")
_COMPILE_SECONDS, _RUN_SECONDS = 120, 900
# What the links of both networks have, one way: 100 Gbit/s, and 2 µs between any two hosts of the
# flat network, in which a message passes two links.
BANDWIDTH, LATENCY = 12.5e9, 2e-6
# Downward ports, upward ports and links to each parent of a fat tree's levels of radix 8: half as
# many links lead up as down, as in many clusters. A message passes 2 to 8 links of 0.5 µs.
_RADIX, _UP, _HOP = 8, 4, 0.5e-6


class MissingSimGridError(Exception):
    """SimGrid is not installed."""


@dataclass(frozen=True)
class Network:
    """A simulated cluster, one rank per host.

    Attributes:
        name: `flat` (every host has its own link to one switch) or `fat tree`.
        ranks: Number of hosts; for a fat tree a power of 8.
    """

    name: str
    ranks: int

    def platform(self) -> str:
        """The description of the cluster, XML."""
        if self.name == "flat":
            network = f'lat="{LATENCY / 2}s"'
        else:
            levels = 0
            while _RADIX**levels < self.ranks:
                levels += 1
            if _RADIX**levels != self.ranks:
                raise ValueError(f"a fat tree has a power of {_RADIX} ranks, not {self.ranks}")
            down, links = ",".join([str(_RADIX)] * levels), ",".join(["1"] * levels)
            up = ",".join(["1", *[str(_UP)] * (levels - 1)])
            network = (
                f'lat="{_HOP}s" topology="FAT_TREE" topo_parameters="{levels};{down};{up};{links}"'
            )
        return (
            "<?xml version='1.0'?>\n"
            '<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">\n'
            '<platform version="4.1">\n'
            f'  <cluster id="cluster" prefix="host-" suffix="" radical="0-{self.ranks - 1}" '
            f'speed="1Gf" bw="{BANDWIDTH}Bps" {network}/>\n'
            "</platform>\n"
        )


def compiled(directory: Path) -> Path:
    """The program for the simulator, compiled into `directory`.

    Raises:
        MissingSimGridError: There is no smpicc.
    """
    if shutil.which("smpicc") is None or shutil.which("smpirun") is None:
        raise MissingSimGridError("no SimGrid: apt-get install libsimgrid-dev")
    target = directory / "all_reduces"
    subprocess.run(
        ["smpicc", "-O2", str(_PROGRAM), "-o", str(target)], timeout=_COMPILE_SECONDS, check=True
    )
    return target


def simulate(
    program: Path, network: Network, algorithm: str, values: Sequence[int]
) -> dict[int, float]:
    """Simulated seconds of an all-reduce of float64 by the number of values.

    Args:
        program: From `compiled`.
        network: The cluster.
        algorithm: SMPI's name of an all-reduce algorithm, such as `rdb` (recursive doubling).
        values: Numbers of values.
    """
    directory = program.parent
    platform, hosts = directory / "platform.xml", directory / "hosts"
    platform.write_text(network.platform())
    hosts.write_text("".join(f"host-{rank}\n" for rank in range(network.ranks)))
    options = {
        "network/model": "CM02",  # latency + size/bandwidth, shared fairly; no factors of TCP
        "smpi/allreduce": algorithm,
        "smpi/simulate-computation": "no",
        "smpi/privatization": "no",  # the program has no global variables
    }
    done = subprocess.run(
        [
            *("smpirun", "-np", str(network.ranks)),
            *("-hostfile", str(hosts), "-platform", str(platform)),
            *(f"--cfg={name}:{value}" for name, value in options.items()),
            *("--log=root.thres:critical", str(program), *map(str, values)),
        ],
        cwd=directory,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_RUN_SECONDS,
        check=True,
    )
    lines = (line.split() for line in done.stdout.splitlines())
    return {int(count): float(seconds) for count, seconds in lines}

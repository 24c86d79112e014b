"""How a root file system reaches the package registries: the way this machine does.

What that takes (certificates, pip's configuration, the mirror of apt) is read from this machine
when a test runs and written nowhere in the project.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Of the variables that pip and its libraries read, those that say how, not what, is fetched.
_VARIABLES = (
    "PIP_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_PROXY",
    "PIP_RETRIES", "PIP_TRUSTED_HOST", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
_NAMES = ("/etc/resolv.conf", "/etc/hosts")


def environment() -> dict[str, str]:
    """The variables that programs in the root file system need to reach the registries."""
    return {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}


def copy_settings(root: Path) -> None:
    """Puts the files that those variables and pip's configuration name to the same places."""
    named = [Path(text) for text in environment().values() if text.startswith("/")]
    for path in (*named, *_pip_files(), *map(Path, _NAMES)):
        if path.is_file():
            place = root / path.relative_to("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            # A link there, such as that of systemd's resolv.conf, would lead out of the root.
            place.unlink(missing_ok=True)
            shutil.copy(path, place)


def debian_mirror() -> str | None:
    """The mirror that apt uses here for Debian, or None where debootstrap's own choice will do."""
    question = ["apt-get", "indextargets", "--format", "$(SITE) $(REPO_URI)", "Origin: Debian"]
    try:
        done = subprocess.run(question, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    return next(
        (line.split()[1] for line in done.stdout.splitlines() if "security" not in line), None
    )


def _pip_files() -> list[Path]:
    """The configuration files that pip reads here, and the certificates they name."""
    question = [sys.executable, "-m", "pip", "config", "debug"]
    done = subprocess.run(question, capture_output=True, text=True, timeout=60, check=False)
    lines = [line.strip() for line in done.stdout.splitlines()]
    files = [
        Path(line.removesuffix(", exists: True"))
        for line in lines
        if line.startswith("/") and line.endswith(", exists: True")
    ]
    named = [line.partition(".cert: ")[2] for line in lines]
    return [*files, *(Path(text) for text in named if text)]

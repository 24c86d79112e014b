"""The command that starts an agent, on this machine or on another host."""

import sys
from pathlib import Path

import launcher

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from launcher.agent.__main__ import main; main()"
)


def agent_command(python: str, root: str) -> tuple[str, ...]:
    """Starts an agent from the launcher in the directory `root`, isolated from PYTHONPATH."""
    return (python, "-I", "-S", "-c", _BOOT, root)


def own_agent() -> tuple[str, ...]:
    """Starts an agent with this Python and this launcher."""
    return agent_command(sys.executable, str(Path(launcher.__file__).parents[1]))

"""One line of the doctor's report."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """What was checked, its state, and for any state but `ok` the command that fixes it."""

    name: str
    state: State
    text: str
    fix: str = ""

"""One line of the doctor's report."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and for anything but `ok` the command that mends it."""

    name: str
    state: State
    text: str
    mend: str = ""

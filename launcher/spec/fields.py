"""The types of a job's fields, each with its limits."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_LONGEST = 31_536_000  # seconds: a year
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_AMOUNT = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([KMGT]i?)?B?")


class Data(BaseModel):
    """A model with checked, immutable fields and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_bytes(amount: object) -> object:
    """`"2GiB"`, `"512M"` or a number of bytes, as a number of bytes."""
    if not isinstance(amount, str):
        return amount
    found = _AMOUNT.fullmatch(amount.strip())
    if found is None:
        raise ValueError("expected an amount of memory")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("expected text without the character 0")
    return text


def _directory(value: object) -> object:
    if value == "" or "\0" in str(value):
        raise ValueError("expected the path of a directory")
    return value


# TOML distinguishes integers, floats and booleans, and so do these.
Whole = Annotated[int, Field(strict=True)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=_LONGEST, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Bytes = Annotated[int, Field(strict=True, gt=0, lt=2**63), BeforeValidator(parse_bytes)]
Text = Annotated[str, AfterValidator(_without_nul)]
Directory = Annotated[Path, BeforeValidator(_directory)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

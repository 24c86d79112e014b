"""Which tests answer for which module: what modules.toml says."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("modules.toml")


@dataclass(frozen=True)
class Module:
    """A module and the tests that answer for it.

    Attributes:
        path: Relative to the repository.
        tests: Of one process, which run first.
        ranks: Of real ranks or launchers, for what the first leave alive.
        equivalent: Pieces of mutated lines that change nothing.
    """

    path: str
    tests: tuple[str, ...]
    ranks: tuple[str, ...] = ()
    equivalent: tuple[str, ...] = ()

    @property
    def stages(self) -> list[tuple[str, ...]]:
        return [stage for stage in (self.tests, self.ranks) if stage]


def known_modules() -> list[Module]:
    """The modules of modules.toml, in its order."""
    return [
        Module(path, *(tuple(entry.get(key, ())) for key in ("tests", "ranks", "equivalent")))
        for path, entry in tomllib.loads(TABLE.read_text()).items()
    ]

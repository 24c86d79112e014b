"""The results so far in one JSON file, written atomically, from which a study continues."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.small_batch.plan import Group, Plan, Result
from launcher.errors import UsageError


@dataclass(frozen=True)
class VarianceError:
    """One point of the numerical study.

    Attributes:
        implementation: `syncbn`, `keras` or `horovod`.
        ratio: Mean divided by standard deviation of the data, before rounding to float32.
        median: Median relative error of the variance over channels, compared with float64.
        largest: Largest relative error, likewise.
    """

    implementation: str
    ratio: float
    median: float
    largest: float


@dataclass
class Study:
    """A plan and its results."""

    plan: Plan
    results: list[Result] = field(default_factory=list)
    numerics: list[VarianceError] = field(default_factory=list)

    def missing(self) -> list[Group]:
        """The groups that have not been trained."""
        done = {(result.world, result.batch, result.norm) for result in self.results}
        return [
            group
            for group in self.plan.groups()
            if (group.world, group.batch, group.norm) not in done
        ]


def load(file: Path, plan: Plan) -> Study:
    """The study in the file, or a new one if there is none.

    Raises:
        UsageError: The file cannot be read, or has another plan.
    """
    if not file.exists():
        return Study(plan)
    try:
        content = json.loads(file.read_text())
        found = Plan(**{key: _hashable(value) for key, value in content["plan"].items()})
        results = [Result(**row) for row in content["results"]]
        numerics = [VarianceError(**row) for row in content["numerics"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{file} is not a valid study ({error}); remove it") from error
    if found != plan:
        raise UsageError(
            f"{file} has a study of another plan; remove it or choose another --output. "
            f"Expected: {plan}. Received: {found}"
        )
    return Study(plan, results, numerics)


def save(study: Study, file: Path) -> None:
    """Replaces the file; one row per line, for readable diffs."""
    results = sorted(study.results, key=lambda r: (r.world, r.batch, r.norm, r.sharding, r.seed))
    rows: dict[str, Sequence[Any]] = {"results": results, "numerics": study.numerics}
    parts = [f'"plan": {json.dumps(asdict(study.plan))}']
    for name, values in rows.items():
        lines = ",\n".join(json.dumps(asdict(value)) for value in values)
        parts.append(f'"{name}": [\n{lines}\n]')
    draft = file.with_suffix(".tmp")
    draft.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    os.replace(draft, file)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

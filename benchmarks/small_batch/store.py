"""What is known so far: one JSON file, whole at any moment, from which a study goes on."""

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
        ratio: The data's mean over its standard deviation, before rounding to float32.
        median: Relative error of the variance over channels, against float64.
        largest: Likewise.
    """

    implementation: str
    ratio: float
    median: float
    largest: float


@dataclass
class Study:
    """A plan and what has come of it."""

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
    """The study of the file, or a new one where there is none.

    Raises:
        UsageError: The file cannot be read, or holds another plan.
    """
    if not file.exists():
        return Study(plan)
    try:
        content = json.loads(file.read_text())
        found = Plan(**{key: _hashable(value) for key, value in content["plan"].items()})
        results = [Result(**row) for row in content["results"]]
        numerics = [VarianceError(**row) for row in content["numerics"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{file} is no study to go on with ({error}); remove it") from error
    if found != plan:
        raise UsageError(
            f"{file} holds a study of another plan; remove it or choose another --output. "
            f"Expected: {plan}. Received: {found}"
        )
    return Study(plan, results, numerics)


def save(study: Study, file: Path) -> None:
    """Replaces the file; a row a line, so that differences can be read."""
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

"""The two scripts that the README moves over: what differs, and that two ranks train one model."""

import ast
import difflib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import REPOSITORY, Launcher

EXAMPLES = REPOSITORY / "examples"

# Runs an example as it stands, then tells its accuracy and all its weights to the test.
WITNESS = """
import hashlib, json, runpy, sys
import numpy as np
ended = runpy.run_path(sys.argv[1], run_name="__main__")
model = ended["model"]
digest = hashlib.sha256(b"".join(np.asarray(w).tobytes() for w in model.weights)).hexdigest()
from sklearn.datasets import load_digits
images, labels = load_digits(return_X_y=True)
if "horovod" in sys.argv[1]:
    images = images / 16.0
print(json.dumps([digest, float(model.evaluate(images, labels, verbose=0)[1]),
                  ended["rank"], ended["size"]]))
"""


def _changed_lines(name: str) -> int:
    """Lines of the moved script that the first one does not have; its docstring does not count."""
    before, after = (_body(EXAMPLES / f"{name}_{when}.py") for when in ("before", "after"))
    return sum(
        line.startswith("+ ") and line[2:].strip() != "" for line in difflib.ndiff(before, after)
    )


def _body(path: Path) -> list[str]:
    text = path.read_text()
    start = ast.parse(text).body[0].end_lineno
    return text.splitlines()[start:]


@pytest.mark.parametrize("name", ["horovod_script", "keras_fit"])
def test_moving_over_takes_at_most_five_lines(name: str) -> None:
    assert 0 < _changed_lines(name) <= 5


@pytest.mark.multiprocess
@pytest.mark.timeout(90)
def test_the_moved_horovod_script_trains_one_model(
    horovodrun: Launcher, script: Callable[[str], Path]
) -> None:
    arguments = [str(EXAMPLES / "horovod_script_after.py")]
    first, second = horovodrun(2, script(WITNESS), arguments, options=["--gloo"]).json()
    _check_one_model(first, second)


@pytest.mark.multiprocess
@pytest.mark.timeout(90)
def test_the_moved_keras_script_trains_one_model(
    mpirun: Launcher, single_process: Launcher, script: Callable[[str], Path]
) -> None:
    first, second = mpirun(2, script(WITNESS), [str(EXAMPLES / "keras_fit_after.py")]).json()
    _check_one_model(first, second)
    before = single_process(1, EXAMPLES / "keras_fit_before.py").check().stdout[0]
    assert float(before.split()[-1]) > 0.95


def _check_one_model(first: list, second: list) -> None:
    (digest, accuracy, *place), (other_digest, _, *other_place) = first, second
    assert (place, other_place) == ([0, 2], [1, 2])
    assert digest == other_digest
    assert accuracy > 0.95

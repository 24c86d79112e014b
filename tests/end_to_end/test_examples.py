"""examples/: the two scripts that are moved over (what differs, and that two ranks train one
model), and the others as they stand, at toy size."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documentation.differences import EXAMPLES, differences
from tests.processes import Launcher

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("name", ["horovod_script", "keras_fit"])
def test_moving_over_takes_at_most_five_lines(name: str) -> None:
    added = [line for line in differences(name) if line.startswith("+")]
    assert 0 < len(added) <= 5


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


def _last_number(said: str, pattern: str) -> float:
    found = re.search(pattern, said)
    assert found, said
    return float(found[1])


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_keras_fit_over_horovod(horovodrun: Launcher) -> None:
    said = horovodrun(2, EXAMPLES / "keras_fit_horovod.py", options=["--gloo"]).check().stdout[0]
    assert _last_number(said, r"accuracy ([\d.]+) on 2 ranks") > 0.9


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_a_loop_of_ones_own_over_mpi(mpirun: Launcher) -> None:
    result = mpirun(2, EXAMPLES / "custom_loop_mpi.py").check()
    assert "epoch 4" in result.stdout[0]
    assert "over 1797 images" in result.stdout[0]  # 899 and 898: every row once
    assert _last_number(result.stdout[0], r"accuracy ([\d.]+) on 2 ranks") > 0.95
    assert "AutoGraph" not in result.transcript()


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_multi_worker_mirrored_strategy(tf_cluster: Launcher) -> None:
    said = tf_cluster(2, EXAMPLES / "multi_worker_mirrored.py").check().stdout
    accuracies = [_last_number(text, r"accuracy ([\d.]+) on 2 replicas") for text in said]
    assert min(accuracies) > 0.95
    assert accuracies[0] == accuracies[1]


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_fine_tuning_a_converted_resnet50(horovodrun: Launcher) -> None:
    options = ["--weights", "none", "--size", "32", "--steps", "2"]
    program = EXAMPLES / "fine_tune_resnet50.py"
    said = horovodrun(2, program, options, options=["--gloo"]).check().stdout[0]
    assert "53 synchronized layers, 10 of them trained" in said
    assert _last_number(said, r"loss ([\d.]+) after 2 steps") > 0


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_segmentation_with_tiny_batches(mpirun: Launcher) -> None:
    said = mpirun(2, EXAMPLES / "segmentation.py", ["--steps", "20"]).check().stdout[0]
    assert _last_number(said, r"loss ([\d.]+), mean overlap [\d.]+ over 2 ranks") < 2.398  # ln 11

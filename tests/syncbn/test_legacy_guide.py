"""docs/tensorflow1.md: the results of its first three blocks are exact.

tests/documentation runs all blocks of all pages.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "tensorflow1.md"
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)

pytestmark = pytest.mark.usefixtures("fresh_layers")


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, str(GUIDE), "exec"), names)
    return names


def test_store_block(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(BLOCKS[0])
    assert capsys.readouterr().out == "['BatchNorm', 'second']\n5\n"
    network = names["network"]
    assert len(network.weights) == 9
    network(tf.random.normal([3, 4]))  # another pass, the same layers
    assert len(network.weights) == 9


def test_switch_block() -> None:
    names = run(BLOCKS[1])
    images = names["images"].numpy().astype("float64")
    mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
    np.testing.assert_allclose(
        names["trained"], (images - mean) / np.sqrt(variance + 1e-3), 1e-5, 1e-5
    )
    moving_mean, moving_variance = 0.001 * mean, 0.999 + 0.001 * variance
    np.testing.assert_allclose(
        names["served"], (images - moving_mean) / np.sqrt(moving_variance + 1e-3), 1e-5, 1e-5
    )


def test_raw_block() -> None:
    names = run(BLOCKS[2])
    images = names["images"].numpy().astype("float64")
    mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
    np.testing.assert_allclose(names["moving_mean"], 0.1 * mean, 1e-5)
    np.testing.assert_allclose(names["moving_variance"], 0.9 + 0.1 * variance, 1e-5)
    np.testing.assert_allclose(
        names["trained"], (images - mean) / np.sqrt(variance + 1e-3), 1e-4, 1e-5
    )
    np.testing.assert_allclose(
        names["served"],
        (images - 0.1 * mean) / np.sqrt(0.9 + 0.1 * variance + 1e-3),
        1e-5,
        1e-5,
    )

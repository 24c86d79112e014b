"""A data set that a function of the user's returns."""

from pathlib import Path

import numpy as np
import pytest

from launcher.errors import UsageError
from launcher.train.data import DataError, load_dataset
from launcher.train.data.order import rank_shares


def test_a_users_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_data.py").write_text(
        "import tensorflow as tf\n"
        "def pairs():\n"
        "    return tf.data.Dataset.range(20).map(\n"
        "        lambda i: (tf.fill([2, 2, 1], tf.cast(i, tf.float32)), i % 4))\n"
        "def batched():\n"
        "    return pairs().batch(4)\n"
        "def flawed():\n"
        "    def check(i):\n"
        "        ratio = 1.0 / tf.cast(i - 7, tf.float32)\n"
        "        return tf.debugging.check_numerics(tf.fill([2], ratio), 'x')\n"
        "    return tf.data.Dataset.range(20).map(lambda i: (check(i), 0))\n"
    )
    monkeypatch.chdir(tmp_path)
    data = load_dataset("their_data:pairs", validation_part=0.25)
    assert (data.shape, data.classes, len(data.train), len(data.validation)) == (
        (2, 2, 1),
        4,
        15,
        5,
    )

    def epoch(number: int, rank: int) -> list[float]:
        examples, order = data.train.in_epoch(0, number)
        seen: list[float] = []
        for share in rank_shares(order, 0, 2, rank, 2):
            seen += examples.read(share)[0][:, 0, 0, 0].tolist()
        return seen

    both = epoch(0, 0) + epoch(0, 1)
    assert sorted(both) == [float(i) for i in range(5, 20)], "each sample once, none twice"
    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(1, 0)
    # From the middle, as a resumed run asks for it.
    examples, order = data.train.in_epoch(0, 0)
    rest = [examples.read(share)[0][:, 0, 0, 0] for share in rank_shares(order, 8, 2, 0, 2)]
    assert np.concatenate(rest).tolist() == epoch(0, 0)[4:]

    with pytest.raises(UsageError, match="expected unbatched"):
        load_dataset("their_data:batched")
    with pytest.raises(DataError, match=r"their_data:flawed, example 7"):
        load_dataset("their_data:flawed")
    assert load_dataset("their_data:flawed", skip_bad_records=True).skipped == 1
    with pytest.raises(UsageError, match="cannot import it"):
        load_dataset("their_data:missing")


def test_invalid_labels_of_a_users_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_labels.py").write_text(
        "import tensorflow as tf\n"
        "def labelled(*labels):\n"
        "    features = tf.zeros([len(labels), 2])\n"
        "    return tf.data.Dataset.from_tensor_slices((features, list(labels)))\n"
        "def negative():\n"
        "    return labelled(0, 1, -1)\n"
        "def between():\n"
        "    return labelled(0.0, 1.5)\n"
        "def held_out():\n"
        "    return labelled(0, 1, 1), labelled(1, -3)\n"
        "def more():\n"
        "    return labelled(0, 1, 1), labelled(1, 2)\n"
        "def names():\n"
        "    return labelled('cat', 'dog')\n"
        "def floats():\n"
        "    return labelled(0.0, 1.0, 1.0), labelled(1.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    for function, problem in (
        ("negative", "example 2: expected a label from 0 to .* Received: -1"),
        ("between", "expected integer labels"),
        ("held_out", "held out, example 1: expected a label from 0 to .* Received: -3"),
        ("names", "expected integer labels"),
    ):
        with pytest.raises(DataError, match=f"their_labels:{function}.*{problem}"):
            load_dataset(f"their_labels:{function}")
    assert load_dataset("their_labels:floats").classes == 2
    assert load_dataset("their_labels:more").classes == 3, (
        "what is held out is measured by its own label"
    )

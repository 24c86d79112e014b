"""The job as described by the environment variables of a process."""

import json
import os
import sys

import pytest

from syncbn.communicators import horovod
from syncbn.communicators.cluster_environment import cluster_environment, cluster_from_tf_config
from syncbn.errors import WorldError

TF_CONFIG = json.dumps(
    {
        "cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"], "ps": ["d:1"]},
        "task": {"type": "worker", "index": 1},
    }
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("local", 0, 1)),
        ({"HOROVOD_SIZE": "4", "HOROVOD_RANK": "3"}, ("horovod", 3, 4)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, ("mpi", 1, 2)),
        ({"PMI_SIZE": "3", "PMI_RANK": "2"}, ("mpi", 2, 3)),
        ({"TF_CONFIG": TF_CONFIG}, ("tf", 2, 3)),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, ("local", 0, 1)),
        ({"TF_CONFIG": ""}, ("local", 0, 1)),
        ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "1", "PMI_SIZE": "9"}, ("horovod", 1, 2)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "TF_CONFIG": TF_CONFIG}, ("mpi", 0, 2)),
    ],
    ids=str,
)
def test_variables_of_each_launcher(
    variables: dict[str, str], expected: tuple[str, int, int]
) -> None:
    around = cluster_environment(variables)
    assert (around.backend, around.rank, around.size) == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": 3}', '{"task": {"index": "x"}}', "7"])
def test_broken_tf_config(text: str) -> None:
    with pytest.raises(WorldError, match="TF_CONFIG must be JSON") as caught:
        cluster_from_tf_config(text)
    assert f"Received: {text!r}" in str(caught.value)


def test_broken_numbers_of_ranks() -> None:
    with pytest.raises(WorldError, match=r"must be whole numbers\. Received: 'two'"):
        cluster_environment({"HOROVOD_SIZE": "two"})


@pytest.mark.parametrize("mpi4py", [True, False])
def test_the_cycle_time_is_long_only_if_mpi_reduces(
    mpi4py: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "0",
        "HOROVOD_CYCLE_TIME": "of the test",  # to be restored
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("HOROVOD_SIZE", raising=False)
    monkeypatch.delenv("HOROVOD_CYCLE_TIME")
    if not mpi4py:
        monkeypatch.setitem(sys.modules, "mpi4py", None)
    horovod.choose_cycle_time()
    assert (os.environ.get("HOROVOD_CYCLE_TIME") == "50") == mpi4py

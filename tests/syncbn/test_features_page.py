"""docs/features.md names a test for each cell of syncbn, which exists and runs on its backends."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.syncbn.runs import JOBS

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "features.md"
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")

ON_EVERY_BACKEND = (
    *("test_matrix.py", "test_matrix_features.py", "test_matrix_collectives.py"),
    *("test_matrix_two_ranks.py", "test_communicators_on_ranks.py", "test_equal_models.py"),
)
# The names of the worlds on the page.
BACKENDS = {
    "horovod-mpi": "Horovod over MPI",
    "horovod-gloo": "Horovod over Gloo",
    "mpi": "MPI",
    "multiworker": "a TensorFlow cluster",
}
# Tests that start ranks themselves, without a backend in their parameters.
BY_HAND = {
    "test_rule_8_a_graph_outlives_a_resize_of_the_world": {"horovod-gloo"},
    "test_model_of_a_horovod_job_works_without_horovod": {"horovod-mpi"},
}


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("Feature", "---")]


CELLS = [(row[1], *named) for row in rows() for named in NAMED.findall(row[1])]


def claimed(cell: str, file: str) -> set[str]:
    """The backends on which the page says that a test runs."""
    words = cell.partition(": `")[0]
    _, _, after = words.rpartition("on ")
    named = {world for world, name in BACKENDS.items() if re.search(rf"(?<!over ){name}\b", after)}
    if "on Horovod" in words:
        return named
    return {*BACKENDS} if file in ON_EVERY_BACKEND else set()


def given(module: ModuleType, function: Callable[..., Any]) -> set[str]:
    """The backends among the parameters of a test and of its fixtures."""
    marks = [*getattr(function, "pytestmark", [])]
    words = set(_words([mark.args for mark in marks if mark.name == "parametrize"]))
    for name in inspect.signature(function).parameters:
        fixture = vars(module).get(name)
        words |= set(_words(getattr(fixture, "_fixture_function_marker", None)))
    return {"multiworker" if word == "tf" else word for word in words} & {*BACKENDS}


def _words(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif hasattr(values, "params"):  # of a fixture
        yield from _words(values.params)
    elif isinstance(values, tuple | list | dict):
        for value in values:
            yield from _words(value)


@pytest.mark.parametrize(("cell", "file", "name"), CELLS, ids=lambda text: text[:60])
def test_every_named_test_runs_on_the_backends_of_its_cell(cell: str, file: str, name: str) -> None:
    module = importlib.import_module(f"tests.syncbn.{file.removesuffix('.py')}")
    backends = BY_HAND.get(name) or given(module, getattr(module, name))
    assert claimed(cell, file) == backends, cell


def test_no_other_test_of_the_page_starts_ranks() -> None:
    """The page says that the other tests run in one process."""
    for _, file, name in CELLS:
        if file in ON_EVERY_BACKEND or name in BY_HAND:
            continue
        tree = ast.parse((HERE / file).read_text())
        (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
        asked = {argument.arg for argument in function.args.args}
        assert not asked & {"mpirun", "horovodrun", "tf_cluster"}, name


def test_every_cell_of_ours_names_a_test() -> None:
    assert len(rows()) > 25
    assert {*JOBS} == {*BACKENDS}
    for feature, ours, *_ in rows():
        assert NAMED.findall(ours), f"no test named for: {feature}"


def test_every_note_is_there_and_used() -> None:
    text = PAGE.read_text()
    notes = re.findall(r"^\[\^([\w-]+)\]:", text, flags=re.MULTILINE)
    used = set(re.findall(r"\[\^([\w-]+)\](?!:)", text))
    assert len(notes) == len(set(notes))
    assert set(notes) == used

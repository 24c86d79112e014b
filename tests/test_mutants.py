"""That `make mutants` finds what its table names, wherever modules and tests have moved."""

import ast

import pytest

from tests.mutants.modules import Module, known_modules
from tests.processes import REPOSITORY


@pytest.mark.parametrize("module", known_modules(), ids=lambda module: module.path)
def test_the_table_names_what_there_is(module: Module) -> None:
    assert (REPOSITORY / module.path).is_file()
    named = [word for stage in module.stages for word in stage if word.startswith("tests/")]
    assert named
    for test in named:
        path, _, name = test.partition("::")
        tree = ast.parse((REPOSITORY / path).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions if name else functions

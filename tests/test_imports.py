"""Imports go one way: from the command line down to the description of a job, and never in circles.

Read from the source, so that imports inside functions count too; those for type checkers alone
(`if TYPE_CHECKING`) do not.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.processes import REPOSITORY

# Each line may import from the lines above it, and from its own line.
LAUNCHER = (
    ("errors", "heartbeat", "options", "strict_json", "version"),
    ("atomic",),
    ("horovod_build",),
    ("spec",),
    ("agent",),
    ("placement",),
    ("runs",),
    ("metrics",),
    ("report", "terminal"),
    ("supervision",),
    ("targets",),
    ("rendezvous",),
    ("doctor",),
    ("train",),
    ("cli",),
    ("__main__",),
)
# Two on one line do not know each other.
APART = {("report", "terminal"), ("terminal", "report")}


def test_the_launcher_imports_downwards_only() -> None:
    level = {part: number for number, line in enumerate(LAUNCHER) for part in line}
    wrong = []
    for module, imported in _imports("launcher"):
        if not imported.startswith("launcher."):
            continue
        upper, lower = _part(module), _part(imported)
        if level[upper] < level[lower] or (upper, lower) in APART:
            wrong.append(f"{module} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_syncbn_knows_nothing_of_the_launcher() -> None:
    upward = [pair for pair in _imports("syncbn") if pair[1].partition(".")[0] == "launcher"]
    assert not upward


@pytest.mark.parametrize("package", ["launcher", "syncbn"])
def test_no_module_imports_itself_through_others(package: str) -> None:
    graph: dict[str, set[str]] = {}
    for module, imported in _imports(package):
        if imported.partition(".")[0] == package and imported != package:
            graph.setdefault(module, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def _part(module: str) -> str:
    return module.split(".")[1]


def _imports(package: str) -> Iterator[tuple[str, str]]:
    """Pairs of a module and a module that it imports, both with their full names."""
    files = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((REPOSITORY / package).rglob("*.py"))
    }
    for module, path in files.items():
        for node in _nodes(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((module, name.name) for name in node.names if name.name != package)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                assert node.level == 0, f"{module}: imports are written in full"
                for name in node.names:
                    inner = f"{node.module}.{name.name}"
                    yield module, inner if inner in files else node.module


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those in `if TYPE_CHECKING` blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _nodes(node)

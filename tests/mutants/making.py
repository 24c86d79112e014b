"""The mutants of a source file, and a sample of them."""

import ast
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator, operator_names


@dataclass(frozen=True)
class Mutant:
    """One change of the module at `path`, relative to the repository."""

    path: str
    line: int
    operator: str
    source: str
    diff: str


class StatementRemover(Operator):
    """Leaves out a call whose value nobody uses, or an assignment to an attribute or an item.

    cosmic-ray has nothing of the kind, and a promise is often one such line.
    """

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if _is_removable(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return parso.python.tree.Name("pass", node.start_pos, node.get_first_leaf().prefix)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("f(x)", "pass"), Example("x.y = 1", "pass"))


def _is_removable(node: Any) -> bool:
    if node.parent is None or node.parent.type != "simple_stmt":
        return False
    if node.type == "atom_expr":
        return node.children[-1].type == "trailer" and node.children[-1].children[0].value == "("
    function = node.search_ancestor("funcdef")
    # Without an attribute that its constructor sets, an object does nothing at all.
    constructs = function is not None and function.name.value == "__init__"
    return node.type == "expr_stmt" and node.children[0].type == "atom_expr" and not constructs


def sample(
    root: Path, path: str, size: int, seed: int, equivalent: Sequence[str] = ()
) -> list[Mutant]:
    """At most `size` mutants, no two of the same place; all places have the same chance.

    What has a piece of text of `equivalent` that the source has not is no mutant.
    """
    source = (root / path).read_text()
    places = _places(source)
    chooser = random.Random(f"{seed} {path}")
    starts = sorted(places)
    chooser.shuffle(starts)
    mutants: list[Mutant] = []
    for start in starts:
        if len(mutants) == size:
            break
        # One place has one to eleven replacements; a few may give no Python.
        for operator, occurrence in chooser.sample(places[start], len(places[start])):
            mutated = mutate_code(source, _make(operator), occurrence)
            if mutated is None or any(piece in _plain(mutated) for piece in equivalent):
                continue
            if _differs(source, mutated):
                mutants.append(
                    Mutant(path, start[0], operator, mutated, _diff(path, source, mutated))
                )
                break
    return sorted(mutants, key=lambda mutant: mutant.line)


def _places(source: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """Operators with the occurrence that each of them has at a place."""
    tree = get_ast(source)
    nodes = list(ast_nodes(tree))
    left_out = [*_annotations(nodes), *_durations(nodes), *_ways_to_write(nodes)]
    places = defaultdict(list)
    for name in [*filter(_is_of_use, operator_names()), StatementRemover.__name__]:
        operator = _make(name)
        starts = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, start in enumerate(starts):
            if not any(first <= start < last for first, last in left_out):
                places[start].append((name, occurrence))
    return places


def _annotations(nodes: list[Any]) -> list[tuple[Any, Any]]:
    """Where types stand: nothing there changes what is computed."""
    parts = (
        node.children[1] if node.type == "annassign" else node.annotation
        for node in nodes
        if node.type in {"annassign", "funcdef", "param"}
    )
    return [(part.start_pos, part.end_pos) for part in parts if part is not None]


def _durations(nodes: list[Any]) -> list[tuple[Any, Any]]:
    """Constants such as `_LOOK_SECONDS = 0.1`: no promise, and no test may rest on them."""
    return [
        (node.start_pos, node.end_pos)
        for node in nodes
        if node.type == "expr_stmt"
        and node.parent.parent.type == "file_input"
        and node.get_defined_names()[0].value.endswith("_SECONDS")
    ]


def _ways_to_write(nodes: list[Any]) -> list[tuple[Any, Any]]:
    """`@dataclass(frozen=True)` and the like restrict what may be written, not what is done."""
    return [
        (node.start_pos, node.end_pos)
        for node in nodes
        if node.type == "decorator" and node.children[1].get_code().startswith("dataclass(")
    ]


def _is_of_use(name: str) -> bool:
    """`==` and `is` are the same for most values of a test: no test could tell them apart."""
    if "ReplaceComparisonOperator" in name:
        before, after = name.rpartition("Operator_")[2].split("_")
        return before.startswith("Is") == after.startswith("Is")
    return not get_operator(name).arguments()


def _make(name: str) -> Operator:
    return StatementRemover() if name == StatementRemover.__name__ else get_operator(name)()


def _plain(mutated: str) -> str:
    """cosmic-ray puts spaces before what it replaces."""
    return re.sub(r"([(\[{]|(?<=\S) ) +", r"\1", mutated)


def _differs(source: str, mutated: str) -> bool:
    try:
        return ast.dump(ast.parse(source)) != ast.dump(ast.parse(mutated))
    except SyntaxError:
        return False


def _diff(path: str, source: str, mutated: str) -> str:
    lines = unified_diff(source.splitlines(), mutated.splitlines(), path, path, lineterm="", n=2)
    return "\n".join(lines)

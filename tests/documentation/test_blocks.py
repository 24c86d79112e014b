"""Every block of code in the README and in docs/ works: run, or checked word by word.

What this machine cannot run (a cluster, a Docker engine, an installation) is listed at the end with
the reason, like every other test that did not run.
"""

import shutil
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from launcher.train.config import load_config
from tests.documentation.commands import NotRun, Program, check, check_job
from tests.documentation.differences import differences
from tests.documentation.pages import PAGES, Block, blocks, commands
from tests.processes import Launcher, SingleProcess

ALL = [block for page in PAGES for block in blocks(page)]
LANGUAGES = {"console", "diff", "promql", "python", "text", "toml", "yaml"}


def _of(language: str) -> list[Block]:
    return [block for block in ALL if block.language == language]


def _programs(page: Path) -> list[Block]:
    return [
        block for block in ALL if block.page == page and block.title and block.language == "python"
    ]


def _name(page: Path) -> str:
    return page.stem


@pytest.fixture(scope="module")
def python_results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str | None]]:
    """The page to None, or to what failed on it: all pages in one process."""
    launcher = SingleProcess(tmp_path_factory.mktemp("python"))
    folder = tmp_path_factory.mktemp("pages")
    pages = [str(page) for page in PAGES if any(b.page == page for b in _of("python"))]
    try:
        job = launcher(1, "tests.documentation.run_python", [str(folder), *pages], timeout=150)
        yield job.json()[0]
    finally:
        launcher.close()


def test_every_block_says_what_it_is() -> None:
    assert {block.place for block in ALL if block.language not in LANGUAGES} == set()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", sorted({block.page for block in _of("python")}), ids=_name)
def test_python_blocks_run_in_order(page: Path, python_results: dict[str, str | None]) -> None:
    failure = python_results[str(page)]
    assert failure is None, failure


@pytest.mark.parametrize("page", sorted({block.page for block in _of("console")}), ids=_name)
def test_commands_are_what_their_programs_take(page: Path) -> None:
    programs = [str(block.title) for block in _programs(page)]
    run = set()
    for block in [block for block in _of("console") if block.page == page]:
        for command in commands(block):
            try:
                outcome = check(command, programs)
            except Exception as error:
                raise AssertionError(f"{block.place}: {command}: {error}") from error
            run |= {outcome.name} if isinstance(outcome, Program) else set()
    assert set(programs) <= run, "a program on the page that no command runs"


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in PAGES if _programs(page)], ids=_name)
def test_programs_of_a_page_run_by_its_commands(
    page: Path, single_process: Launcher, tmp_path: Path
) -> None:
    programs = _programs(page)
    for program in programs:
        (tmp_path / str(program.title)).write_text(program.text)
    names = [str(program.title) for program in programs]
    typed = [c for block in _of("console") if block.page == page for c in commands(block)]
    wanted = [command for command in typed if isinstance(check(command, names), Program)]
    # A page names a command as often as it helps the reader; once is enough here.
    once = list(dict.fromkeys(wanted))
    single_process(
        1,
        "tests.documentation.run_commands",
        [str(tmp_path), *once],
        timeout=280,
    ).check()


@pytest.mark.parametrize("block", _of("toml"), ids=lambda block: block.place)
def test_toml_is_a_job_or_a_training(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text(block.text)
    if "command" in tomllib.loads(block.text):
        check_job(file)
    else:
        load_config({}, file)


def test_yaml_is_yaml() -> None:
    for block in _of("yaml"):
        assert list(yaml.safe_load_all(block.text)), block.place


@pytest.mark.prometheus
@pytest.mark.timeout(60)
def test_queries_are_what_prometheus_takes(single_process: Launcher, tmp_path: Path) -> None:
    queries = [query for block in _of("promql") for query in block.text.split("\n\n")]
    rules = [{"record": f"page:query{n}", "expr": query} for n, query in enumerate(queries)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "pages", "rules": rules}]}))
    command = f"{shutil.which('promtool')} check rules {file}"
    single_process(1, "tests.documentation.run_commands", [str(tmp_path), command]).check()


@pytest.mark.parametrize("block", _of("diff"), ids=lambda block: block.place)
def test_a_difference_is_that_of_two_examples(block: Block) -> None:
    assert block.title, f'{block.place}: title="..." says which examples differ'
    said = [line for line in block.text.splitlines() if line.strip()]
    assert said == differences(block.title.removeprefix("examples/"))


def _not_run() -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for block in _of("console"):
        for command in commands(block):
            with suppress(Exception):  # a wrong command fails the test above
                outcome = check(command, [str(program.title) for program in _programs(block.page)])
                if isinstance(outcome, NotRun):
                    reasons[outcome.reason].append(f"{block.page.name}: {command}")
    return reasons


@pytest.mark.parametrize("reason", sorted(_not_run()))
def test_commands_not_run_here(reason: str) -> None:
    pytest.skip(f"{reason} — {'; '.join(sorted(set(_not_run()[reason])))}")

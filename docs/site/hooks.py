"""Extends mkdocs: the README as the front page, tables of options, formulas, sources.

mkdocs calls the functions named `on_*` (mkdocs.yml names this file).
"""

import re
from pathlib import Path
from typing import Any

import typer
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from launcher.cli import run
from launcher.train import __main__ as trainer

ROOT = Path(__file__).resolve().parents[2]

# Pages at the root of the repository, and their names in the site.
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}

_LINK = re.compile(r"\]\(\.\./([\w./-]+)(#[\w-]+)?\)")
_LINK_AT_ROOT = re.compile(r"\]\((?!https?:|#)([\w./-]+)(#[\w-]+)?\)")
_SOURCE = re.compile(r"<!-- source of ([\w./-]+) -->")
_OPTIONS = re.compile(r"<!-- options of ([\w. ]+?) -->")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root, and the files of the repository that pages link to."""
    for name, page in ROOT_PAGES.items():
        text = _LINK_AT_ROOT.sub(_as_from_docs, (ROOT / name).read_text())
        files.append(File.generated(config, page, content=text))
    texts = [file.content_string for file in files if file.src_uri.endswith(".md")]
    for linked in {found[0] for text in texts for found in _LINK.findall(text)}:
        if (ROOT / linked).is_file() and linked not in ROOT_PAGES:
            path = str(ROOT / linked)
            files.append(File.generated(config, f"source/{linked}", abs_src_path=path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links out of docs/ to copies in the site; inserts sources and tables of options."""
    markdown = _LINK.sub(_to_the_copy, markdown)
    markdown = _SOURCE.sub(_source, markdown)
    return _OPTIONS.sub(lambda found: "\n".join(_options(found[1])), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Converts formulas to MathML, which browsers render without a script."""

    def drawn(found: re.Match[str]) -> str:
        return convert(_unescaped(found[3]), display="inline" if found[2] == "(" else "block")

    return _FORMULA.sub(drawn, html)


def _as_from_docs(link: re.Match[str]) -> str:
    """A link of a page at the root, written as a page in docs/ would."""
    inside = link[1].removeprefix("docs/")
    return f"]({inside if inside != link[1] else f'../{link[1]}'}{link[2] or ''})"


def _to_the_copy(link: re.Match[str]) -> str:
    if link[1] in ROOT_PAGES:
        return f"]({ROOT_PAGES[link[1]]}{link[2] or ''})"
    # A directory has no page in the site: link to the source tree instead.
    return f"](source/{link[1]})" if (ROOT / link[1]).is_file() else "](index.md#source-tree)"


def _source(found: re.Match[str]) -> str:
    return f'```python title="{found[1]}"\n{(ROOT / found[1]).read_text()}```'


def _options(program: str) -> list[str]:
    rows = [
        (", ".join(f"`{name}`" for name in option.opts), option.help or "")
        for option in _parameters(program)
        if option.opts[0].startswith("-") and not option.hidden
    ]
    lines = [f"| {names} | {text.replace('|', '&#124;')} |" for names, text in rows]
    return ["| option | meaning |", "| --- | --- |", *lines]


def _parameters(program: str) -> list[Any]:
    app = typer.Typer(add_completion=False)
    known: dict[str, Any] = {
        "launcher run": run.command,
        "launcher.train": trainer._command(trainer.train),
    }
    app.command()(known[program])
    return typer.main.get_command(app).params


def _unescaped(formula: str) -> str:
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        formula = formula.replace(entity, character)
    return formula

"""What mkdocs does beyond its plugins: the README as the front page, options, formulas, sources.

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

_LINK = re.compile(r"\]\((?:\.\./)+([\w./-]+)\)")
_OPTIONS = re.compile(r"<!-- options of ([\w. ]+?) -->")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the front page, and the files of the repository that pages link to."""
    home = (ROOT / "README.md").read_text()
    home = re.sub(r"\]\(docs/", "](", home)
    home = re.sub(r"\]\(((?!https?:|#)[\w-]+(?:/[\w./-]+)?)\)", _from_the_root, home)
    files.append(File.generated(config, "index.md", content=home))
    pages = [file.content_string for file in files if file.src_uri.endswith(".md")]
    for linked in {name for page in pages for name in _LINK.findall(page)}:
        if (ROOT / linked).is_file():
            path = str(ROOT / linked)
            files.append(File.generated(config, f"source/{linked}", abs_src_path=path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links out of docs/ at copies in the site, and fills in tables of options."""
    markdown = _LINK.sub(_to_the_copy, markdown)
    return _OPTIONS.sub(lambda found: "\n".join(_options(found[1])), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML, which browsers draw without any script."""
    return _FORMULA.sub(
        lambda found: convert(_unescaped(found[3]), "inline" if found[2] == "(" else "block"), html
    )


def _from_the_root(link: re.Match[str]) -> str:
    """A link of the README that stays in docs/, or leads to another part of the repository."""
    inside = (ROOT / "docs" / link[1]).exists()
    return link[0] if inside else f"](../{link[1]})"


def _to_the_copy(link: re.Match[str]) -> str:
    # A folder has no page of its own here; its name in the text says where it is.
    return f"](source/{link[1]})" if (ROOT / link[1]).is_file() else "](index.md#the-tree)"


def _options(program: str) -> list[str]:
    rows = [
        (", ".join(f"`{name}`" for name in option.opts), option.help or "")
        for option in _parameters(program)
        if option.opts[0].startswith("-")
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

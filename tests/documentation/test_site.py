"""`make docs`: the site is built without a warning, and asks nothing of the network when read."""

import re
from pathlib import Path

from tests.documentation.building import build_site
from tests.processes import REPOSITORY, Launcher

# What a browser fetches by itself; links that a reader may follow are no fetches.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b[^>]*rel=[\"']?(?:stylesheet|preconnect|icon|preload)[^>]*href=[\"']?(?:https?:)?//[^>]*>"
)


def test_the_site_holds_every_page_and_fetches_nothing(
    single_process: Launcher, tmp_path: Path
) -> None:
    site = build_site(single_process, tmp_path / "site")
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")} | {"index"}
    assert {path.stem for path in site.glob("*.html")} >= pages
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not FETCHED.findall(text), page
        assert r"\[" not in text or page.stem != "numerics", "a formula was left unrendered"
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", style.read_text()), style


def test_every_page_is_in_the_navigation() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text().split("\nnav:", 1)[1]
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert f" {page.name}\n" in navigation, page

"""The documentation in a real browser: no page is wider than a phone, and nothing is fetched."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

from tests.documentation.building import build_site
from tests.processes import Launcher

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
FLAGS += " --disable-background-networking --disable-component-update --disable-sync"

# All pages in frames, each as wide as a phone; once all are loaded, what is too wide is told.
FRAMES = """<!doctype html><body>{frames}<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => ({{
    page: frame.title,
    heading: frame.contentDocument.querySelector("h1").textContent,
    width: frame.contentDocument.documentElement.scrollWidth,
    window: frame.contentWindow.innerWidth,
    fetched: frame.contentWindow.performance.getEntriesByType("resource")
      .map(entry => entry.name).filter(name => !name.startsWith("file:")),
  }}));
  const said = document.createElement("pre");
  said.id = "found";
  said.textContent = JSON.stringify(found);
  document.body.append(said);
}});
</script>"""


def test_every_page_fits_a_phone_and_fetches_nothing(
    single_process: Launcher, tmp_path: Path
) -> None:
    site = build_site(single_process, tmp_path / "site")
    pages = sorted(page.name for page in site.glob("*.html") if page.name != "404.html")
    frames = "".join(
        f'<iframe title="{page}" src="{page}" width="390" height="844" frameborder="0"></iframe>'
        for page in pages
    )
    (site / "frames.htm").write_text(FRAMES.format(frames=frames))
    command = f"chromium {FLAGS} --allow-file-access-from-files --dump-dom"
    command += f" --user-data-dir={tmp_path / 'profile'} {(site / 'frames.htm').as_uri()}"
    arguments = [str(tmp_path), command]
    dom = single_process(1, "tests.documentation.run_commands", arguments).check().stdout[0]
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    measured = json.loads(unescape(found[1]))
    assert [one["page"] for one in measured] == pages
    assert [one for one in measured if one["width"] > one["window"] or not one["heading"]] == []
    assert [one["fetched"] for one in measured if one["fetched"]] == []

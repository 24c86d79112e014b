"""The report in a real browser: laid out without overflow, readable, and without any network."""

import json
import re
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from launcher.report.write import write_report
from tests.launcher.report.runs import Story, write_launcher_journal, write_run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
FLAGS += " --disable-background-networking --disable-component-update --disable-sync"

WINDOWS = {"phone": (390, 844), "tablet": (820, 1180), "wide": (1440, 900)}
NAME = "digits-resnet50-sync-20261121-081243-4f2a"

# Runs in the page after it is laid out; what it finds becomes the page's text.
MEASURE = """
<script>
const box = element => element.getBoundingClientRect();
const luminance = color => {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const contrast = (a, b) => {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
};
const card = getComputedStyle(document.querySelector("figure")).backgroundColor;
const texts = [...document.querySelectorAll("svg text")];
const found = {
  window: innerWidth,
  width: document.documentElement.scrollWidth,
  outside: [...document.querySelectorAll("main *")]
    .filter(e => !e.closest("svg") && !e.closest(".scroll") && box(e).right > innerWidth + 1)
    .map(e => e.tagName + "." + e.className),
  columns: new Set([...document.querySelectorAll("figure")].map(f => Math.round(box(f).left))).size,
  figures: [...document.querySelectorAll("figure svg")].map(s => [box(s).width, box(s).height]),
  cut: texts.filter(t => {
    const [inner, outer] = [box(t), box(t.closest("svg"))];
    return inner.left < outer.left - 1 || inner.right > outer.right + 1
      || inner.bottom > outer.bottom + 1;
  }).map(t => t.textContent),
  smallest: Math.min(...texts.map(t => box(t).height)),
  body: parseFloat(getComputedStyle(document.querySelector(".findings p")).fontSize),
  contrasts: [...document.querySelectorAll("h1, h2, figcaption p, .findings p, dt, dd")]
    .map(e => contrast(getComputedStyle(e).color, card)),
  requests: performance.getEntriesByType("resource").length,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
};
const said = document.createElement("pre");
said.id = "found";
said.textContent = JSON.stringify(found);
parent.document.body.append(said);
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with a slow rank and a restart, and a long name."""
    run = write_run(
        tmp_path_factory.mktemp("runs") / NAME, Story(ranks=8, slow=(5, 1.3), layers=20)
    )
    summary = "rank 3 on node-7.cluster.example was killed by the kernel: out of memory"
    write_launcher_journal(
        run,
        {"time": 1.0, "event": "failed", "attempt": 0, "summary": f"{summary} after step 80"},
        {"time": 2.0, "event": "restarting", "attempt": 0},
    )
    return write_report([run])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs side by side."""
    directory = tmp_path_factory.mktemp("compared")
    runs = [write_run(directory / f"{NAME}-{n}", Story(step_seconds=0.1 / n)) for n in (1, 2)]
    return write_report(runs)


def _chromium(page: Path, profile: Path, *flags: str) -> str:
    command = ["chromium", *FLAGS.split(), f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _measure(page: Path, directory: Path, window: str, *flags: str) -> dict[str, Any]:
    # Headless windows are at least 500 pixels wide, frames can be as narrow as a phone.
    width, height = WINDOWS[window]
    content = escape(page.read_text().replace("</body>", f"{MEASURE}</body>"))
    frame = directory / f"{window}.html"
    frame.write_text(f'<iframe width={width} height={height} frameborder=0 srcdoc="{content}">')
    dom = _chromium(frame, directory / f"profile-{window}", "--dump-dom", *flags)
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    measured: dict[str, Any] = json.loads(unescape(found[1]))
    assert measured["window"] == width
    return measured


@pytest.mark.parametrize(("window", "columns"), [("phone", 1), ("tablet", 2), ("wide", 3)])
def test_it_reads_well_in_every_window(
    page: Path, tmp_path: Path, window: str, columns: int
) -> None:
    found = _measure(page, tmp_path, window)
    assert found["width"] <= found["window"], "no scrolling sideways"
    assert found["outside"] == []
    assert found["columns"] == columns
    assert found["cut"] == [], "text of a figure beyond its edge"
    assert found["smallest"] >= 8, "pixels of the smallest line of text in a figure"
    assert found["body"] >= 14
    assert len(found["figures"]) == 8
    assert all(width > 250 and height > 120 for width, height in found["figures"])
    assert min(found["contrasts"]) >= 4.5
    assert found["requests"] == 0


def test_it_has_a_dark_side(page: Path, tmp_path: Path) -> None:
    found = _measure(page, tmp_path, "phone", "--blink-settings=preferredColorScheme=0")
    assert found["dark"]
    assert min(found["contrasts"]) >= 4.5


@pytest.mark.parametrize("window", ["phone", "wide"])
def test_two_runs_fit_too(comparison: Path, tmp_path: Path, window: str) -> None:
    found = _measure(comparison, tmp_path, window)
    assert found["width"] <= found["window"]
    assert found["outside"] == []
    assert found["cut"] == []
    assert len(found["figures"]) == 13


def test_something_is_drawn(page: Path, tmp_path: Path) -> None:
    """A screenshot shows each series' colour, so the figures' styles have reached the drawing."""
    picture = tmp_path / "page.png"
    flags = [f"--screenshot={picture}", "--window-size=1440,2400"]
    _chromium(page, tmp_path / "profile", *flags)
    pixels = (matplotlib.image.imread(picture)[..., :3] * 255).round().astype(int)
    style = page.read_text()
    light = style[: style.index("prefers-color-scheme: dark")]
    for name, color in re.findall(r"--(series-[1-4]): #(\w{6});", light):
        wanted = [int(color[i : i + 2], 16) for i in (0, 2, 4)]
        assert (abs(pixels - wanted).max(axis=-1) <= 8).sum() > 30, name

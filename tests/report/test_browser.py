"""The page in a real browser: no console error, every plot drawn, the hover card works, it fits a phone."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from selfsight.report.atlas import atlas
from selfsight.report.content import ReportContent
from selfsight.report.gather import draw_views, read_numbers, read_rows
from selfsight.report.page import build_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=15000",
]
WITNESS = """
<script>
new MutationObserver((_, observer) => {
  observer.disconnect();
  const root = document.documentElement;
  root.dataset.overflow = root.scrollWidth - window.innerWidth;
  root.dataset.line = getComputedStyle(document.querySelector("#plot-loss .trace:last-child .js-line")).stroke;
  root.dataset.paper = getComputedStyle(document.body).backgroundColor;
  const plot = document.getElementById("plot-map");
  if (plot) {
    const trace = plot._fullData[0], layout = plot._fullLayout;
    plot.emit("plotly_hover", {points: [{customdata: trace.customdata[1], x: trace.x[1], y: trace.y[1],
                                         xaxis: layout.xaxis, yaxis: layout.yaxis}]});
    root.dataset.caption = document.querySelector("#hover p").textContent;
    root.dataset.thumb = document.querySelector("#hover .thumb").style.backgroundPosition;
  }
}).observe(document.documentElement, {attributeFilter: ["data-drawn"]});
</script>
"""


def opened(page: Path, *, query: str = "", width: int = 1400) -> tuple[dict[str, str], str, list[str]]:
    """The root's data attributes and the document after its scripts ran, and what the console said."""
    command = [str(CHROMIUM), *FLAGS, f"--window-size={width},900", f"--user-data-dir={page.parent / 'profile'}"]
    command += ["--dump-dom", f"{page.as_uri()}{query}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    root = re.search(r"<html([^>]*)>", done.stdout)
    assert root
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return dict(re.findall(r'data-([a-z]+)="([^"]*)"', root[1])), done.stdout, said


@pytest.fixture
def page(run_folder, patches, mirrored, coarse, tmp_path):
    """A whole page with a witness that writes what it sees into the root element."""
    found, near = atlas(coarse, mirrored.plain, patches, most=48)
    content = ReportContent(
        name="runs/x",
        settings={},
        title="Made up",
        metrics=read_numbers(run_folder / "metrics.csv"),
        timings=read_numbers(run_folder / "timings.csv"),
        alarms=read_rows(run_folder / "alarms.csv"),
        views=draw_views(mirrored, patches, seed=0),
        embedding=replace(found, names=["</script><img src=x onerror=console.error(1)>"] * len(found.names)),
        neighbours=near,
    )
    path = tmp_path / "report.html"
    text = build_page(content)
    assert text.count("<script>") == 2
    path.write_text(text.replace("<script>", WITNESS + "<script>", 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("theme", "width", "paper", "accent"),
    [("light", 1400, "rgb(251, 251, 249)", "rgb(43, 95, 148)"), ("dark", 500, "rgb(19, 21, 23)", "rgb(133, 180, 227)")],
)
def test_the_page_lives(page, theme, width, paper, accent):
    """No error; all plots drawn in the theme's colours; the hover card shows text as text; nothing is too wide."""
    root, document, said = opened(page, query=f"?theme={theme}", width=width)
    assert not said
    plots = re.findall(r'<div class="plot[^"]*" id="plot-([a-z0-9_-]+)"', document)
    assert int(root["drawn"]) == len(plots) == 11
    assert document.count('class="main-svg"') >= len(plots)
    for section in "evaluation training monitors views map neighbours throughput skipped recipe repeat".split():
        assert f'<section id="{section}"' in document
    assert root["paper"] == paper
    assert root["line"] == accent
    assert "onerror" in root["caption"]
    assert re.fullmatch(r"-?\d+px -?\d+px", root["thumb"])
    assert int(root["overflow"]) <= 0

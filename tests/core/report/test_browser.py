"""The page in a real browser with the network cut, at the widths of a telephone, a tablet and a screen."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lapo_cli.core.report import page
from tests.core.report.run_files import write_run

_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_WIDTHS = (400, 800, 1400)

pytestmark = pytest.mark.skipif(_BROWSER is None, reason="no Chromium is installed")

# Appended to a copy of the page: plays every film, and leaves what it found in the title.
_INSPECT = """<script>
addEventListener("load", () => setTimeout(() => {
  const pixels = (canvas) => canvas.toDataURL();
  const canvases = [...document.querySelectorAll("canvas")];
  const before = canvases.map(pixels);
  for (const slider of document.querySelectorAll("input")) {
    slider.value = slider.max;
    slider.dispatchEvent(new Event("input"));
  }
  const moved = canvases.map((canvas, i) => pixels(canvas) !== before[i]);
  document.querySelector("button").click();
  document.title = JSON.stringify({
    ready: document.querySelectorAll(".player[data-ready=yes]").length,
    players: document.querySelectorAll(".player").length,
    broken: [...document.images].filter((image) => !image.naturalWidth).length,
    moved: moved.filter(Boolean).length,
    canvases: canvases.length,
    playing: document.querySelector("button").textContent,
    said: [...document.querySelectorAll("output")].map((output) => output.textContent),
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    empty: [...document.querySelectorAll(".plot")].filter((plot) => plot.getBoundingClientRect().height < 80).length,
    loaded: performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !/^data:/.test(name)),
  });
}, 500));
</script>"""


def _chromium(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    assert _BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=6000"]
    network = [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        f"--user-data-dir={file.parent}/profile",
    ]
    return subprocess.run(
        [_BROWSER, *options, *network, *words, file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.make([write_run(tmp_path_factory.mktemp("runs") / "run", ["bigfish", "maze"], [0, 1]).path])


@pytest.fixture(scope="module", params=_WIDTHS)
def found(request: pytest.FixtureRequest, report: Path) -> Any:
    copy = report.with_name(f"inspected-{request.param}.html")
    copy.write_text(report.read_text() + _INSPECT)
    process = _chromium(copy, f"--window-size={request.param},900", "--dump-dom")
    assert re.findall("CONSOLE.*", process.stderr) == []
    title = re.search(r"<title>(\{.*?\})</title>", process.stdout)
    assert title is not None, process.stdout[:500]
    return json.loads(title[1])


def test_all_is_there_and_nothing_was_asked_of_the_network(found: Any) -> None:
    assert found["ready"] == found["players"] == 6
    assert (found["broken"], found["empty"], found["loaded"]) == (0, 0, [])


def test_films_run_by_slider_and_button(found: Any) -> None:
    assert found["moved"] == found["canvases"] > 0
    assert "step 3 of 3" in found["said"]
    assert found["playing"] == "Pause"


def test_nothing_is_wider_than_the_window(found: Any) -> None:
    assert found["wide"] <= 0


def test_light_and_dark_differ_in_paper_and_ink(report: Path) -> None:
    mean = {}
    for name, words in (("light", []), ("dark", ["--blink-settings=preferredColorScheme=0"])):
        image = report.with_name(f"{name}.png")
        _chromium(report, "--window-size=800,1200", f"--screenshot={image}", *words)
        pixels = np.asarray(Image.open(image).convert("L"), float)
        assert pixels.std() > 10
        mean[name] = pixels.mean()
    assert mean["light"] > 200
    assert mean["dark"] < 60

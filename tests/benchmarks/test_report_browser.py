"""The page in a headless Chromium: sorting, filters, no error, nothing wider than a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape

import pytest
from report_cases import CONTENDERS, NFE, write

from logsnr.benchmarks.reports.written import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")

WATCH = """<script>
window.errors = [];
window.addEventListener("error", (event) => errors.push(String(event.message)));
for (const kind of ["error", "warn"]) console[kind] = (...said) => errors.push(said.join(" "));
</script>"""

CHECK = """<script>
const shown = (selector) => Array.from(document.querySelectorAll(selector))
  .filter((element) => element.getClientRects().length > 0);
const click = (selector) => document.querySelector(selector).click();
const names = (table) => shown(table + " tbody tr").map((row) => row.children[0].dataset.v);
const column = (table, i) => shown(table + " tbody tr")
  .map((row) => row.children[i].dataset.v || "");
const lines = () => shown("svg.chart .series").length;
const said = {errors, width: [document.documentElement.scrollWidth, innerWidth]};
const all = ".scroll.tall table";
const sorted = (i) => {
  document.querySelectorAll(all + " thead button")[i].click();
  return column(all, i);
};
said.words = sorted(0);
said.up = sorted(3);
said.down = sorted(3);
said.rows = names(all).length;
said.metrics = shown("div[data-metric]").map((element) => element.dataset.metric);
click('input[name="metric"][value="fid"]');
said.fid = shown("div[data-metric]").map((element) => element.dataset.metric);
said.lines = lines();
click('input[name="solver"][value="unipc"]');
said.without = names(all);
said.linesWithout = lines();
click('[data-pick="theirs"]');
said.theirs = [...new Set(names(all))].sort();
click('[data-pick="none"]');
said.none = names(all).length;
click('[data-pick="all"]');
const path = () => document.querySelector("svg.chart .series .line")
  .getAttribute("d").split("L").length;
said.points = path();
click('input[name="nfe"][value="4"]');
said.pointsLeft = path();
said.nfe = [...new Set(column(all, 1))];
said.heads = shown("div[data-metric] thead th[data-nfe]").map((head) => head.dataset.nfe);
click('input[name="setting"][value="B"]');
said.sections = shown("section").map((section) => section.dataset.setting);
const pre = document.createElement("pre");
pre.id = "check";
pre.textContent = JSON.stringify(said);
document.body.append(pre);
</script>"""


def looked_at(folder, width: int) -> dict:
    """What the page's script says of itself at a width of the window."""
    html = (folder / "report.html").read_text(encoding="utf-8")
    html = html.replace("<head>", "<head>" + WATCH).replace("</body>", CHECK + "</body>")
    (folder / "check.html").write_text(html, encoding="utf-8")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", f"--user-data-dir={folder / f'browser-{width}'}",
        f"--window-size={width},900", "--dump-dom", f"file://{folder / 'check.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="check">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return json.loads(unescape(found[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page of two settings, in which one contender has gaps."""
    folder = tmp_path_factory.mktemp("page")
    write(folder / "a")
    write(folder / "b", contenders=["unipc", "ipndm"], model="digits", pictures=False)
    write_report([folder / "a", folder / "b"], folder)
    return folder


@pytest.fixture(scope="module", params=[375, 1280])
def said(request, folder):
    return looked_at(folder, request.param)


def test_the_console_is_silent_and_nothing_is_too_wide(said):
    assert said["errors"] == []
    assert said["width"][0] <= said["width"][1]


def test_columns_sort_by_value(said):
    up, down = [list(map(float, filter(None, said[key]))) for key in ("up", "down")]
    # both settings have such a table, and the first was sorted
    first = len(CONTENDERS) * len(NFE)
    assert up[:first] == sorted(up[:first]) and down[:first] == sorted(down[:first])[::-1]
    assert up[0] < up[first - 1]
    words = said["words"][:first]
    assert words == sorted(words, key=str.lower)


def test_filters_hide_rows_lines_columns_and_settings(said):
    assert said["rows"] == (len(CONTENDERS) + 2) * len(NFE)
    assert set(said["metrics"]) == {"rmse"} and set(said["fid"]) == {"fid"}
    # one contender less: in two charts of each of two settings
    assert said["lines"] - said["linesWithout"] == 4
    assert "unipc" not in said["without"] and "ipndm" in said["without"]
    assert said["theirs"] == ["DDIM", "DPMSolverMultistep", "UniPCMultistep"]
    assert said["none"] == 0
    assert said["points"] == len(NFE) and said["pointsLeft"] == len(NFE) - 1
    left = {str(nfe) for nfe in NFE[1:]}
    assert set(said["nfe"]) == left and set(said["heads"]) == left
    assert said["sections"] == ["A"]

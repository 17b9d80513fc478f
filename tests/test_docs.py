"""The examples of the README and of docs/ run as they stand (blocks marked ``python``)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from places import ROOT

from logsnr.solvers import make_plan, sample

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {}
"""What a page says of its examples, asked of the names that they leave."""


def check(page: str):
    def register(function):
        CHECKS[page] = function
        return function

    return register


@check("your-own-network")
def _(left):
    exact, points = left["exact"], left["moons"](4000)[0]
    assert float(torch.cdist(exact, points).min(dim=1).values.median()) < 0.1  # on the moons
    plans = [make_plan(name, left["schedule"], nfe=8) for name in ("unipc", "ddim")]
    errors = [float((sample(left["denoise"], left["x_T"], plan) - exact).norm()) for plan in plans]
    assert errors[0] < 0.7 * errors[1]
    assert left["error_bar"] < 0.01 and len(left["seen"]) == left["plan"].nfe == 8
    assert left["path"].shape == (5, 100, 2)
    torch.testing.assert_close(left["stats"].dense(0.001), left["x0"], rtol=0, atol=1e-3)
    moved = sample(left["few"], left["start"].detach(), left["plan"]) - left["target"]
    first = sample(left["few"], left["x_T"][:8], left["plan"]) - left["target"]
    assert float(moved.square().sum()) < 0.8 * float(first.square().sum())


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem
)
def test_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), namespace)
    if page.stem in CHECKS:
        CHECKS[page.stem](namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


# Names of files and modules

BESIDE = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("*/README.md"))]
WRITTEN = [*PAGES, *(page for page in BESIDE if page not in PAGES)]
PATHS = [
    path.relative_to(ROOT)
    for top in ("solvers", "adapters", "benchmarks", "tests", "docs", "src")
    for path in (ROOT / top, *(ROOT / top).rglob("*"))
    if "__pycache__" not in path.parts
]
FOLDERS = "|".join(sorted({path.parts[0] for path in PATHS}))
LOOKS_LIKE_A_PATH = re.compile(rf"`((?:[\w*-]+/)*[\w*-]+\.(?:py|md)|(?:{FOLDERS})/[\w./*-]*)`")
DOTTED = re.compile(r"`(logsnr(?:\.\w+)+)")


def named(text: str) -> bool:
    """Whether there is a file or folder of that name, from the top or from any folder on."""
    return any(path.match(text.rstrip("/")) for path in PATHS) or (ROOT / text).exists()


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    for text in LOOKS_LIKE_A_PATH.findall(page.read_text()):
        assert named(text), text


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_dotted_names_that_a_page_names_exist(page):
    for text in DOTTED.findall(page.read_text()):
        if not text.endswith("xxx"):  # any of several
            resolve_name(text)


def test_a_file_that_is_not_there_is_seen():
    text = "`solvers/nonesuch.py`, `run.py`, `tests/nonesuch`, `methods/*.py`, `solvers/`, `x.y`"
    found = LOOKS_LIKE_A_PATH.findall(text)
    assert [name for name in found if not named(name)] == found[:3]
    assert found[3:] == ["methods/*.py", "solvers/"]

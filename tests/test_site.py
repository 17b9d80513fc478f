"""The documentation's site: every page is in it, the reference is complete, formulas are drawn."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
from places import ROOT

from logsnr import adapters, solvers

DOCS = ROOT / "docs"
SITE = (ROOT / "mkdocs.yml").read_text()
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"\$\$\n(.*?)\n\$\$|\$([^$\n]+)\$", re.DOTALL)
PAGES = sorted(path for path in DOCS.rglob("*.md") if path != DOCS / "README.md")


def hook(name: str):
    sys.path.insert(0, str(DOCS / "hooks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def formulas(page: Path) -> list[tuple[str, bool]]:
    """(TeX, whether it stands in a line of text) of each formula."""
    text = re.sub(r"`[^`]*`", "", FENCED.sub("", page.read_text()))
    return [(display or inline, not display) for display, inline in FORMULA.findall(text)]


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r": ([\w/-]+\.md)$", SITE, flags=re.MULTILINE))
    assert listed == {str(page.relative_to(DOCS)) for page in PAGES}


def test_the_list_of_pages_names_those_that_are_written_by_hand():
    listed = (DOCS / "README.md").read_text()
    for page in PAGES:
        name = str(page.relative_to(DOCS))
        if name != "index.md" and not name.startswith("api/"):
            assert f"({name})" in listed, name


def test_the_reference_has_every_public_function_and_class():
    reference = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    listed = set(re.findall(r"^::: ([\w.]+)$", reference, flags=re.MULTILINE))
    # Where a function has the name of its module, only the whole path is the function's.
    paths = (path.rpartition(".") for path in listed)
    shown = {getattr(importlib.import_module(module), name) for module, _, name in paths}
    public = {
        getattr(module, name)
        for module in (solvers, adapters)
        for name in module.__all__
        if callable(getattr(module, name))
    }
    assert shown == public


@pytest.mark.parametrize("page", [p for p in PAGES if formulas(p)], ids=lambda p: p.stem)
def test_formulas_are_drawn(page):
    pytest.importorskip("ziamath")
    for tex, inline in formulas(page):
        drawn = hook("formulas").drawing(" ".join(tex.split()), inline)
        assert drawn.startswith("<svg") and "<path" in drawn and 'class="math"' in drawn


def test_formulas_of_a_page_are_replaced():
    pytest.importorskip("ziamath")
    content = (
        r'<p>so <span class="arithmatex">\(a &lt; b\)</span></p>'
        r'<div class="arithmatex">\[\frac{a}{b}\]</div><pre>\(kept\)</pre>'
    )
    page = hook("formulas").on_page_content(content)
    assert page.count("<svg") == 2 and "arithmatex" not in page and r"\(kept\)" in page
    assert 'aria-label="a &lt; b"' in page


def test_lists_in_docstrings_become_lists():
    pytest.importorskip("griffe")
    text = (
        "First line.\n\nParameters\n----------\na, b : two\n    of them\n**options : more.\n\n"
        "Raises ValueError : never a list.\n"
    )
    assert hook("docstrings").markdown(text) == (
        "First line.\n\n**Parameters**\n\n- `a`, `b`: two\n    of them\n- `**options`: more.\n\n"
        "Raises ValueError : never a list.\n"
    )

"""Formulas of the site: TeX between dollar signs becomes a drawing.

So the pages need no script, no font and no connection for their formulas, which look the same in
every browser. The TeX stands in the drawing's label, for screen readers and for copying.
"""

from __future__ import annotations

import html
import re
from typing import Any

import ziamath

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?:\(|\[)(?P<tex>.*?)\\(?:\)|\])</(?P=tag)>',
    re.DOTALL,
)
SIZE = 20.0  # of a letter, in the drawing's units; on the page it is that of the text around it
TALLEST = 8.0  # letters; more is a formula that was not understood

ziamath.config.svg2 = False  # paths, not symbols whose names would be those of other formulas


def drawing(tex: str, inline: bool) -> str:
    """A formula as an SVG element, in the size and the colour of the text."""
    formula = ziamath.Latex(tex, size=SIZE, inline=inline, color="currentColor")
    width, height = (side / SIZE for side in formula.getsize())
    if height > TALLEST:
        raise ValueError(f"the formula {tex} would be {height:.0f} letters high")
    depth = formula.getyofst() / SIZE
    style = f"width:{width:.3f}em;height:{height:.3f}em;vertical-align:{depth:.3f}em"
    attributes = f'class="math" role="img" aria-label="{html.escape(tex)}" style="{style}"'
    size = re.compile(r' width="[^"]*" height="[^"]*"')
    return size.sub(lambda _: f" {attributes}", formula.svg(), count=1)


def typeset(match: re.Match[str]) -> str:
    """A formula in a line of text, or one that is displayed."""
    tex = " ".join(html.unescape(match["tex"]).split())
    if match["tag"] == "span":
        return drawing(tex, inline=True)
    return f'<div class="formula">{drawing(tex, inline=False)}</div>'


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page."""
    return FORMULA.sub(typeset, content)

"""What the Markdown pages share."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def release(package: str) -> str:
    """The installed version, without what a build adds to it."""
    return version(package).split("+")[0]

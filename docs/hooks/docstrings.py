"""Docstrings of the reference as Markdown: their lists of parameters become lists.

The docstrings of this project are written to be read as they stand. A list begins with a line such
as "Parameters" that is underlined, has entries "name : what it is", and ends with the next
paragraph that is none.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import griffe

ENTRY = re.compile(r"^(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*) : (?P<text>.*)$")
UNDERLINE = re.compile(r"^-{3,}$")


def markdown(docstring: str) -> str:
    """The docstring with its lists as Markdown's."""
    return "\n".join(_lines(docstring.split("\n")))


def _lines(lines: list[str]) -> Iterator[str]:
    inside = False
    for k, line in enumerate(lines):
        below = lines[k + 1] if k + 1 < len(lines) else ""
        if UNDERLINE.match(line):
            continue
        if UNDERLINE.match(below):
            inside = True
            yield f"**{line}**\n"
        elif inside and (entry := ENTRY.match(line)):
            names = ", ".join(f"`{name}`" for name in entry["names"].split(", "))
            yield f"- {names}: {entry['text']}"
        else:
            inside = inside and (not line or line.startswith(" "))
            yield line


def as_called(function: griffe.Function) -> None:
    """Give a function whose options are declared in a class the signature that its callers see."""
    real = getattr(importlib.import_module(function.module.path), function.name)
    kinds = {
        inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
        inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
    }
    parameters = []
    for p in inspect.signature(real).parameters.values():
        default = None if p.default is p.empty else repr(p.default)
        parameters.append(griffe.Parameter(p.name, kind=kinds[p.kind], default=default))
    function.parameters = griffe.Parameters(*parameters)
    if function.docstring is not None:
        function.docstring.value = inspect.getdoc(real) or ""


class Lists(griffe.Extension):
    """Rewrites every docstring when its object has been read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe with each module, class, function and attribute."""
        if isinstance(obj, griffe.Function) and any(
            str(decorator.value).startswith("takes(") for decorator in obj.decorators
        ):
            as_called(obj)
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

"""The rooms of benchmarks/: imports go one way, so none of them is in a circle."""

from __future__ import annotations

import ast

import pytest
from places import ROOT

ROOMS = ("problems", "metrics", "embedded", "harness", "studies", "reports", "cli")
"""Each may import those before it, and itself."""


def imported(path):
    """Modules that a file imports, at its top or inside of functions, but not for types alone."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_below_it(room):
    allowed = ROOMS[: ROOMS.index(room) + 1]
    files = sorted((ROOT / "benchmarks" / room).rglob("*.py"))
    assert files
    for path in files:
        for module in imported(path):
            if module.startswith("logsnr.benchmarks."):
                other = module.split(".")[2]
                assert other not in ROOMS or other in allowed, f"{path} imports {module}"

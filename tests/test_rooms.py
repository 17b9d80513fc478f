"""The rooms of the house: imports go one way, and no name stands for a module and another thing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

FLOORS = ("solvers", "adapters", "benchmarks")
ROOMS = ("problems", "metrics", "official", "embedded", "harness", "studies", "reports", "cli")
"""Of benchmarks. Each floor and each room may import those before it, and itself."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name, without the top-level folders' root."""
    found = {}
    for path in (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """Modules that one imports, at its top or inside of functions, but not for types alone."""
    tree = ast.parse(MODULES[name].read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    package = name.split(".") if MODULES[name].stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found = [alias.name.removeprefix("logsnr.") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            home = ".".join([*above, *filter(None, [node.module])]).removeprefix("logsnr.")
            inner = [f"{home}.{alias.name}" for alias in node.names]
            found = [one if one in MODULES else home for one in inner]
        else:
            continue
        yield from (one for one in found if one in MODULES)


IMPORTS = {name: set(imported(name)) - {name} for name in MODULES}


def test_imports_are_found_however_they_are_written():
    assert "solvers.plan" in IMPORTS["solvers.running"]  # from .plan import Plan
    assert "benchmarks.problems.analytic" in IMPORTS["benchmarks.official.compare"]  # from ..
    assert "benchmarks.studies.orders" in IMPORTS["benchmarks.cli.order"]  # in a function


def test_no_modules_import_each_other():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"an import circle: {' <- '.join(error.args[1])}")


def place(name: str) -> tuple[int, int]:
    """(floor, room) of a module; -1 for what is in no room."""
    floor, _, rest = name.partition(".")
    room = rest.partition(".")[0]
    known = floor == "benchmarks" and room in ROOMS
    return FLOORS.index(floor), ROOMS.index(room) if known else -1


def test_every_module_of_benchmarks_is_in_a_room():
    outside = {name for name in MODULES if place(name) == (FLOORS.index("benchmarks"), -1)}
    assert outside == {"benchmarks", "benchmarks.__main__"}


@pytest.mark.parametrize("name", FLOORS)
def test_a_floor_imports_only_those_below_it(name):
    for module in (one for one in MODULES if one.split(".")[0] == name):
        for other in IMPORTS[module]:
            assert place(other)[0] <= place(module)[0], f"{module} imports {other}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_below_it(room):
    inside = [one for one in MODULES if one.startswith(f"benchmarks.{room}.")]
    assert inside
    for module in inside:
        for other in IMPORTS[module]:
            assert place(other) <= place(module), f"{module} imports {other}"


def bound(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """The names that the statements of a module give to something, with their statements."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name, node) for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((one.id, node) for one in targets if isinstance(one, ast.Name))


def test_no_name_of_a_package_hides_a_module_of_it():
    """``logsnr.adapters.x`` is the module of that name, and never a function, or nothing."""
    packages = [name for name, path in MODULES.items() if path.stem == "__init__"]
    for package in packages:
        for name, node in bound(ast.parse(MODULES[package].read_text())):
            itself = isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is None
            assert itself or f"{package}.{name}" not in MODULES, f"{package} hides {name}"


def test_a_name_that_would_hide_a_module_is_seen():
    text = "from .run import run\nparallel: int = 1\ndef cost(): ...\nfrom . import steps\n"
    assert {name for name, _ in bound(ast.parse(text))} == {"run", "parallel", "cost", "steps"}

"""The package: what importing it costs, its version, its names, and what it depends on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from places import ROOT
from typer.testing import CliRunner

import logsnr
from logsnr.benchmarks.__main__ import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]

HEAVY = (
    "scipy torchdiffeq PIL diffusers transformers torchmetrics matplotlib pandas sympy.core"
).split()


def imported(script: str) -> set[str]:
    """The modules that a fresh interpreter has after ``script``."""
    script += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_that_computes():
    script = (
        "from typer.testing import CliRunner\n"
        "from logsnr.benchmarks.__main__ import COMMANDS, app\n"
        "for command in [[], *([name] for name in COMMANDS)]:\n"
        "    result = CliRunner().invoke(app, [*command, '--help'])\n"
        "    assert result.exit_code == 0 and 'Usage' in result.output, result.output\n"
    )
    assert not imported(script) & {"torch", "numpy", "safetensors", *HEAVY}


def test_the_solvers_import_torch_and_little_more():
    # tqdm comes with torch; whatever else torch takes is not ours.
    ours = imported("import logsnr.solvers") - imported("import torch")
    assert not ours & {*HEAVY, "typer", "rich", "huggingface_hub", "logsnr.adapters"}


def test_the_package_itself_imports_nothing():
    assert not imported("import logsnr") & {"torch", "numpy", "logsnr.solvers"}


@pytest.mark.parametrize("name", logsnr.__all__)
def test_the_names_of_the_package_are_those_of_its_parts(name):
    value = getattr(logsnr, name)
    if name != "__version__":
        home = import_module(value.__module__.rsplit(".", value.__module__.count(".") - 1)[0])
        assert getattr(home, name) is value
    assert name in dir(logsnr)


def test_an_unknown_name_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = logsnr.nonesuch


def test_the_version_is_that_of_the_distribution():
    assert logsnr.__version__ == version("logsnr")
    result = CliRunner().invoke(app, ["--version"])
    assert result.output.split() == ["logsnr", logsnr.__version__]


def test_the_package_is_typed():
    assert (Path(logsnr.__file__).parent / "py.typed").exists()


def test_every_package_is_installed():
    """setup.py lists the folders that have modules."""
    for folder in ("solvers", "adapters", "benchmarks"):
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


# Dependencies


def imports(folders: list[str]) -> set[str]:
    """Top-level names that the modules of ``folders`` import, of packages that are installed."""
    found = set()
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    found.add(node.module)
    return {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"logsnr"}


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;! ]", entry)[0].lower().replace("_", "-") for entry in requirements}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    owners = packages_distributions()
    declared = distributions(PROJECT["dependencies"])
    used = {
        owners[name][0].lower().replace("_", "-")
        for name in imports(["solvers", "adapters", "benchmarks"])
        if name in owners
    }
    optional = distributions(sum(PROJECT["optional-dependencies"].values(), []))
    assert used - declared <= optional
    # Python has it from 3.11 on, where nobody imports the package.
    assert declared - {"tomli"} <= used


def test_what_is_declared_is_pinned():
    pinned = {
        line.partition("==")[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    everything = distributions(
        [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    )
    assert everything - {"logsnr"} <= {name.replace("_", "-") for name in pinned}


def test_a_wheel_takes_the_embedded_models_along():
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["logsnr.benchmarks"]
    files = (ROOT / "benchmarks" / "embedded").rglob("*.*")
    suffixes = {file.suffix for file in files if file.is_file()} - {".py", ".pyc"}
    assert {".safetensors", ".json"} <= suffixes
    assert {f"**/*{suffix}" for suffix in suffixes} <= set(patterns)

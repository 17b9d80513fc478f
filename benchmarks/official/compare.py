r"""``logsnr conformance DIR``: our solvers against recorded runs of the official implementations.

DIR holds a model (``model.json``, a mixture of Gaussians with weights w, means mu and scales s),
start states and tables (``problems.npz``), and for every family, i.e. published code base, an
index of runs with their whole configuration (``<family>.json``) and the arrays they recorded
(``<family>.npz``). ``official`` says what each run is in our terms; here it is run and compared.

A case is *matched* if the result agrees within 1e-9, ||ours - official|| / ||official||, and the
network was called the same number of times at the same times. Every other case has a reason:
a deliberate *difference*, or *unsupported*. What has none is *unexplained* and fails the command.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from logsnr.solvers import Denoiser

from ..problems.analytic import Mixture, Network
from . import deis, diffusers_schedulers, edm, paradigms, sigma, stochastic, v3  # noqa: F401
from .cases import FAMILIES, Array, Case, Difference, Recipe, Unsupported

TOLERANCE = 1e-9
ROUNDING = "rounding: our own result moves as far if the last digit of the start states changes"
STATUSES = ("matched", "difference", "unsupported", "unexplained")


@dataclass(frozen=True)
class Comparison:
    """The outcome for one case; ``error`` is the relative difference, if we ran it."""

    family: str
    id: str
    name: str
    status: str
    reason: str = ""
    error: float | None = None


def read_cases(folder: str | Path, families: Sequence[str] | None = None) -> Iterator[Case]:
    """The cases of a folder, family by family; ValueError names what is not there."""
    folder = Path(folder)
    tables_file = folder / "problems.npz"
    if not tables_file.is_file():
        raise ValueError(f"{folder} has no problems.npz: need a folder of reference cases")
    tables = _arrays(tables_file)
    for name in family_names(folder) if families is None else families:
        if not (folder / f"{name}.json").is_file():
            raise ValueError(
                f"family={name!r}: {folder} has {', '.join(family_names(folder)) or 'none'}"
            )
        index = _index(folder / f"{name}.json")
        arrays = _arrays(folder / f"{name}.npz")
        # Arrays that belong to the family and to no case, such as its statistics.
        owned = {key for entry in index["cases"] for key in entry["arrays"].values()}
        shared = {key: value for key, value in arrays.items() if key not in owned}
        for entry in index["cases"]:
            yield Case(
                family=name,
                id=entry["id"],
                name=entry["name"],
                function=entry["source"]["function"],
                schedule=entry["schedule"],
                config=entry["config"],
                arrays={short: arrays[key] for short, key in entry["arrays"].items()},
                tables={**tables, **shared},
                x_T=tables[entry["x_T"]],
                nfe=entry["nfe"],
            )


def family_names(folder: Path) -> list[str]:
    """The families of a folder: its indices of cases, by name."""
    indices = sorted(path for path in folder.glob("*.json") if path.with_suffix(".npz").is_file())
    return [path.stem for path in indices if "cases" in _index(path)]


def _index(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is damaged: it holds no arrays") from error


def compare(case: Case, model: Mixture) -> Comparison:
    """Run our counterpart of ``case`` on ``model`` and compare result and network calls."""

    def outcome(status: str, reason: str = "", error: float | None = None) -> Comparison:
        return Comparison(case.family, case.id, case.name, status, reason, error)

    if case.family not in FAMILIES:
        return outcome("unexplained", f"family {case.family!r} is not known")
    try:
        answer = FAMILIES[case.family](case)
        if isinstance(answer, Unsupported):
            return outcome("unsupported", answer.reason)
        if isinstance(answer, Difference):
            return outcome("difference", answer.reason)
        result, times = _run(answer, case, model)
    except KeyError as missing:
        return outcome("unexplained", f"the case has no {missing}")
    except (ValueError, ArithmeticError) as problem:
        return outcome("unexplained", f"our run fails: {problem}")
    official = case.arrays["final"]
    if not np.isfinite(official).all():
        if np.isfinite(result).all():
            return outcome("difference", "the official result is not finite, ours is")
        return outcome("unexplained", "neither result is finite")
    error = relative(result, official)
    expected = case.arrays.get("t_eval") if answer.called_at is None else answer.called_at
    if expected is None:
        return outcome("unexplained", "the times of the network calls are not recorded", error)
    other = _other_calls(answer, case, times, expected)
    if other and answer.calls_vary and error <= TOLERANCE:
        return outcome("difference", answer.calls_vary, error)
    if other:
        return outcome("unexplained", other, error)
    if error <= TOLERANCE:
        return outcome("matched", error=error)
    if error <= 10 * _rounding(answer, case, model, result):
        return outcome("difference", ROUNDING, error)
    return outcome("unexplained", "the result differs", error)


def _other_calls(recipe: Recipe, case: Case, times: list[float], expected: Array) -> str:
    """How our network calls differ from the official ones in number or time; "" if they do not."""
    calls = case.nfe if recipe.calls is None else recipe.calls
    if len(times) != len(expected) or len(times) != calls:
        return f"{len(times)} network calls, not {calls}"
    if not np.allclose(times, expected, rtol=recipe.call_tolerance, atol=1e-12):
        far = float(np.abs(np.asarray(times) - expected).max())
        return f"network calls at other times, by {far:.1e}"
    return ""


def _run(recipe: Recipe, case: Case, model: Mixture) -> tuple[Array, list[float]]:
    network = Network(model, recipe.schedule, recipe.prediction)
    denoise = Denoiser(
        network, recipe.schedule, recipe.prediction, network_time=recipe.snap or (lambda t: t)
    )
    start = case.x_T if recipe.x_T is None else recipe.x_T
    result = recipe.run(denoise, torch.from_numpy(np.ascontiguousarray(start, np.float64)))
    return result.numpy(), network.times


def _rounding(recipe: Recipe, case: Case, model: Mixture, result: Array) -> float:
    """How far our own result moves when the start states change in their last digit."""
    start = case.x_T if recipe.x_T is None else recipe.x_T
    moved = 0.0
    for ulps in (-2, -1, 1, 2):
        nudged = replace(recipe, x_T=start * (1 + ulps * np.finfo(np.float64).eps))
        moved = max(moved, relative(_run(nudged, case, model)[0], result))
    return moved


def relative(ours: Array, official: Array) -> float:
    """||ours - official|| / ||official||."""
    return float(np.linalg.norm(ours - official) / np.linalg.norm(official))


@dataclass(frozen=True)
class Summary:
    """The comparisons of one family; ``worst_error`` is over the matched cases."""

    family: str
    cases: int
    matched: int
    difference: int
    unsupported: int
    unexplained: int
    worst_error: float | None
    reasons: dict[str, dict[str, int]]


def summarise(comparisons: Sequence[Comparison]) -> list[Summary]:
    """One `Summary` a family, in order of appearance."""
    summaries = []
    for name in dict.fromkeys(entry.family for entry in comparisons):
        ours = [entry for entry in comparisons if entry.family == name]
        count = Counter(entry.status for entry in ours)
        errors = [e.error for e in ours if e.status == "matched" and e.error is not None]
        reasons = {
            status: dict(Counter(e.reason for e in ours if e.status == status).most_common())
            for status in STATUSES[1:]
            if count[status]
        }
        counts = {status: count[status] for status in STATUSES}
        worst = max(errors, default=None)
        summaries.append(Summary(name, len(ours), **counts, worst_error=worst, reasons=reasons))
    return summaries


def load_folder(
    folder: str | Path, families: Sequence[str] | None = None
) -> tuple[Mixture, list[Case]]:
    """The model of ``folder`` and its cases (or those of the named families)."""
    model_file = Path(folder) / "model.json"
    if not model_file.is_file():
        raise ValueError(f"{folder} has no model.json: need a folder of reference cases")
    return Mixture.load(model_file), list(read_cases(folder, families))


def check_folder(folder: str | Path, families: Sequence[str] | None = None) -> list[Comparison]:
    """Compare every case of ``folder`` (or of the named families); see the module's text."""
    model, cases = load_folder(folder, families)
    return [compare(case, model) for case in cases]

"""Options that are declared once: what functions take, say and refuse because of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields

import pytest
import torch
from cases import SCHEDULES, normal

from logsnr import adapters
from logsnr.solvers import (
    SOLVERS,
    estimate_ems,
    estimation,
    make_plan,
    sample_adaptive,
    sample_parallel,
)
from logsnr.solvers.adaptive_options import AdaptiveRun, AdaptiveSteps
from logsnr.solvers.keywords import takes
from logsnr.solvers.methods.runge_kutta import Churn
from logsnr.solvers.model_statistics.options import NetworkEstimation, OutputsEstimation
from logsnr.solvers.parallel.cost import predict
from logsnr.solvers.parallel.options import ParallelRun, Picard

TAKEN: list[tuple[Callable[..., object], type]] = [
    (estimate_ems, NetworkEstimation),
    (estimation, OutputsEstimation),
    (sample_adaptive, AdaptiveRun),
    (sample_parallel, ParallelRun),
    (predict, Picard),
    (adapters.adaptive, AdaptiveSteps),
    *((SOLVERS[name].build, Churn) for name in ("euler", "heun", "dpm2")),
]
WITH_OTHER_DEFAULTS = [adapters.parallel, adapters.statistics]
SCHEDULE = SCHEDULES["vp_linear"]


@dataclass(frozen=True)
class Simple:
    """Options.

    Parameters
    ----------
    size, colour : of it,
        whatever it is.
    """

    size: int = 1
    _: KW_ONLY
    colour: str = "red"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size={self.size}: need 0 or more")


@dataclass(frozen=True)
class Larger(Simple):
    """More of them.

    Parameters
    ----------
    weight : in kg.
    """

    size: int = 10
    _: KW_ONLY
    weight: float = 2.0


@takes(Larger)
def built(place: str, floor: int = 0, *, options: Larger, careful: bool = True):
    """Builds.

    Parameters
    ----------
    place : where.
    options : all that
        there are.
    careful : or not.
    """
    return place, floor, careful, options


@pytest.mark.parametrize(
    ("arguments", "keywords", "expected"),
    [
        (("here",), {}, ("here", 0, True, Larger())),
        (("here", 1, 2), {"colour": "blue"}, ("here", 1, True, Larger(2, colour="blue"))),
        (("here",), {"size": 3, "careful": False}, ("here", 0, False, Larger(3))),
        (("here",), {"options": Larger(4, weight=1.0)}, ("here", 0, True, Larger(4, weight=1.0))),
        ((), {"floor": 5, "place": "there"}, ("there", 5, True, Larger())),
    ],
)
def test_a_call_with_keywords_is_a_call_with_the_value(arguments, keywords, expected):
    assert built(*arguments, **keywords) == expected


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"size": -1}, "size=-1: need 0"),
        ({"colours": "red"}, r"built\(\) got an unexpected keyword argument 'colours'"),
        ({"options": Larger(), "size": 1}, r"built\(\) got size beside options"),
        ({"options": Simple()}, r"options=Simple\(.*need Larger"),
        ({"options": {"size": 3}}, r"options=\{'size': 3\}: need Larger"),
    ],
)
def test_what_is_not_an_option_is_refused(keywords, message):
    with pytest.raises((TypeError, ValueError), match=message):
        built("here", **keywords)


def test_the_signature_and_the_docstring_name_them():
    assert str(inspect.signature(built)).startswith(
        "(place: 'str', floor: 'int' = 0, size: 'int' = 10, *, careful: 'bool' = True, "
        "colour: 'str' = 'red', weight: 'float' = 2.0)"
    )
    assert inspect.getdoc(built).splitlines()[4:] == [
        "place : where.",
        "size, colour : of it,",
        "    whatever it is.",
        "weight : in kg.",
        "careful : or not.",
    ]


@pytest.mark.parametrize(("function", "kind"), TAKEN, ids=lambda one: one.__name__)
def test_functions_take_all_options_of_their_class_with_its_defaults(function, kind):
    parameters = inspect.signature(function).parameters
    for option in fields(kind):
        assert parameters[option.name].default == option.default


@pytest.mark.parametrize(
    "function",
    [function for function, _ in TAKEN[:6]] + WITH_OTHER_DEFAULTS,
    ids=lambda one: one.__name__,
)
def test_every_parameter_of_a_public_function_is_documented(function):
    """In an entry of its docstring, once."""
    lines = inspect.getdoc(function).splitlines()
    entries = [line.partition(" : ")[0] for line in lines if " : " in line and line[0] != " "]
    named = [name for entry in entries for name in entry.split(", ")]
    assert sorted(named) == sorted(inspect.signature(function).parameters)


def test_a_value_gives_the_run_of_its_keywords():
    plan, x_T = make_plan("ddim", SCHEDULE, nfe=6), normal(2, 4)
    run = ParallelRun(3, 0.01, update="literal")

    def network(x, t):
        return torch.tanh(x)

    by_value, stats = sample_parallel(network, x_T, plan, options=run)
    by_keywords, same = sample_parallel(network, x_T, plan, 3, 0.01, update="literal")
    assert torch.equal(by_value, by_keywords) and stats == same
    assert predict(plan, options=run) == predict(plan, window=3, tolerance=0.01, update="literal")

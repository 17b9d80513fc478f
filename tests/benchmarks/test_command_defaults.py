"""What a command hands on has one default, though its help says it without importing anything."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from logsnr.adapters import statistics
from logsnr.benchmarks.__main__ import COMMANDS
from logsnr.benchmarks.cli.command_line import numbers
from logsnr.benchmarks.harness.study import Study
from logsnr.benchmarks.harness.subjects.opening import EMBEDDED, open_pipeline
from logsnr.benchmarks.studies import demo, orders, parallel, tuning
from logsnr.solvers import estimate_ems

DECLARED: dict[str, tuple[Callable[..., Any], ...]] = {
    # command: whom it hands its options on to; the first that has a name declares it
    "demo": (demo.Settings,),
    "nfe": (Study, open_pipeline),
    "parallel": (parallel.Settings,),
    "ems": (statistics, open_pipeline, estimate_ems),
    "order": (orders.measure_any,),
    "tune": (tuning.Request, open_pipeline),
    "auto": (tuning.Request, open_pipeline),
}
OWN = {
    # What a command decides, or says otherwise than whom it hands it on to.
    "*": {"out", "json_"},
    "demo": {"solvers"},  # the word "all"
    "nfe": {"pipeline", "solvers", "fit", "device"},  # no device: the GPU if there is one
    "ems": {"pipeline", "shrink", "half", "device"},
    "order": {"solver", "set_", "every", "markdown"},
    # A suite declares what bench measures: without an option, nothing is handed on.
    "bench": {
        *("suite", "subjects", "contenders", "nfe", "seeds", "samples", "metrics"),
        *("baseline", "fail_if_worse", "timeout"),
    },
    "tune": {"model", "pipeline", "prompts", "nfe", "iterations", "set_", "device", "timeout"},
    "auto": {"model", "pipeline", "prompts", "nfe", "starts", "device", "timeout"},
    # Their options are their own.
    "overhead": {"shape", "runs"},
    "conformance": {"folder", "family", "verbose"},
    "report": {"folders"},
    "solvers": {"name"},
}


def options(command: str) -> dict[str, Any]:
    """The defaults of a command's options that are not its own."""
    function = getattr(import_module(f"logsnr.benchmarks.cli.{command}"), command)
    own = OWN["*"] | OWN.get(command, set())
    parameters = inspect.signature(function).parameters
    return {name: given.default for name, given in parameters.items() if name not in own}


def declared(command: str, name: str) -> Any:
    for taker in DECLARED[command]:
        parameters = inspect.signature(taker).parameters
        if name in parameters:
            return parameters[name].default
    pytest.fail(f"logsnr {command}: nothing takes {name!r}; is it the command's own?")


def read(name: str, text: Any, like: Any) -> Any:
    """A default as the command reads it."""
    if name == "call_args":
        return json.loads(text) or None
    if not isinstance(like, tuple):
        return text
    if all(isinstance(entry, int) for entry in like):
        return numbers(name, text)
    return tuple(None if part == "all" else type(like[0])(part) for part in text.split(","))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_default_is_that_of_whom_it_is_handed_on_to(command):
    for name, default in options(command).items():
        value = declared(command, name)
        assert read(name, default, value) == value, f"logsnr {command}: {name}"


def test_a_default_that_nothing_declares_is_seen():
    with pytest.raises(pytest.fail.Exception, match="nothing takes 'nonesuch'"):
        declared("ems", "nonesuch")


def test_the_embedded_pipeline_has_one_name():
    for command in ("nfe", "ems"):
        function = getattr(import_module(f"logsnr.benchmarks.cli.{command}"), command)
        assert inspect.signature(function).parameters["pipeline"].default == EMBEDDED

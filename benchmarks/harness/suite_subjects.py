"""The subjects of a suite: what each kind may say, and what is opened from it.

    {model = "faces", guidance = 2.0}                    an embedded model
    {pipeline = "./my-pipeline", prompts = "p.txt"}      a diffusers pipeline, called as it is
    {unet = "./ddpm-cifar10-32"}                         a folder with a UNet and its noise schedule
    {edm = "my_module:load", shape = [3, 32, 32]}        an EDM network from a function or a file
    {problem = "six-gaussians", schedule = "vp-linear"}  a distribution that is a formula

On the command line these are ``faces:guidance=2.0``, ``pipeline=./my-pipeline:prompts=p.txt``.
All kinds take ``contenders``, those that only this subject has, and ``metrics`` in place of the
suite's; all but problems take ``features`` and ``reference``, see `feature_sources`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logsnr.benchmarks.embedded import EMBEDDED_MODELS, embedded_model
from logsnr.benchmarks.harness.contenders import Contender
from logsnr.benchmarks.harness.feature_measures import MOMENTS, MomentsMeasure
from logsnr.benchmarks.harness.feature_sources import embedded_measure, given_measure
from logsnr.benchmarks.harness.measures import Measure
from logsnr.benchmarks.harness.subjects import Subject
from logsnr.benchmarks.harness.subjects.analytic import PROBLEMS, SCHEDULES, analytic
from logsnr.benchmarks.harness.subjects.embedded import embedded_subject
from logsnr.benchmarks.harness.subjects.folders import edm_subject, unet_subject
from logsnr.benchmarks.harness.subjects.opening import DTYPES, open_pipeline
from logsnr.benchmarks.harness.written import importable, option_value, split, unquoted
from logsnr.solvers.names import unknown

OF_IMAGES = ("features", "reference")
PATHS = ("pipeline", "unet", "edm", "prompts", "reference", "features")
"""Where a path may stand; what does not exist beside the suite is left as it is (an ID, a name)."""


@dataclass(frozen=True)
class Kind:
    """One kind of subjects.  keys: what it takes beside its own.  open: makes it from them."""

    keys: Mapping[str, type | tuple[type, ...]]
    open: Callable[[Mapping[str, Any]], Subject]


@dataclass(frozen=True)
class SubjectTable:
    """A subject as it was written, checked.

    key : how errors call it.
    contenders : those that are for this subject alone.
    metrics : those that are in place of the suite's; None: as the suite says.
    """

    key: str
    kind: str
    said: Mapping[str, Any]
    base: Path
    contenders: tuple[Contender, ...] = ()
    metrics: tuple[str, ...] | None = None

    def open(self) -> Subject:
        """The subject; ValueError naming the table for what cannot be opened."""
        importable(Path(), self.base)
        try:
            return KINDS[self.kind].open(self._found)
        except ValueError as error:
            raise ValueError(f"{self.key}: {error}") from error

    def check_metrics(self, suite: Sequence[str]) -> None:
        """Raise ValueError for metrics, its own or the suite's, that this kind does not have."""
        metrics = suite if self.metrics is None else self.metrics
        if self.kind == "problem" and set(metrics) - {MOMENTS}:
            raise ValueError(
                f"{self.key}: metrics={list(metrics)}: a problem has only {MOMENTS!r}; say so in "
                f"its table, metrics = ['{MOMENTS}']"
            )
        if self.kind != "problem" and MOMENTS in metrics:
            raise ValueError(
                f"{self.key}: metrics={MOMENTS!r}: only a problem has exact moments; others say "
                "metrics of their own in their table"
            )

    def measures(self, suite: Sequence[str], folder: Path) -> tuple[Measure, ...]:
        """What its samples are measured with, its own metrics or the suite's.

        folder : keeps what is computed of the reference.

        Raises ValueError as `check_metrics`, and for a reference that cannot be read.
        """
        self.check_metrics(suite)
        found = self._found
        metrics = suite if self.metrics is None else self.metrics
        try:
            if not metrics:
                return ()
            if self.kind == "problem":
                return (MomentsMeasure(PROBLEMS[found["problem"]]()),)
            if self.kind == "model" and not set(OF_IMAGES) & found.keys():
                return (embedded_measure(embedded_model(found["model"]), metrics),)
            return (given_measure(metrics, folder, **_only(found, OF_IMAGES)),)
        except ValueError as error:
            raise ValueError(f"{self.key}: {error}") from error

    @property
    def _found(self) -> dict[str, Any]:
        """With paths that exist beside the suite."""
        found = dict(self.said)
        for key in PATHS:
            beside = self.base / str(found.get(key, ""))
            if key in found and beside.exists():
                found[key] = str(beside)
        return found


def subject_table(
    key: str,
    table: Mapping[str, Any],
    base: Path,
    contenders: tuple[Contender, ...] = (),
    metrics: tuple[str, ...] | None = None,
) -> SubjectTable:
    """The table, checked without opening anything; ValueError naming the entry."""
    kinds = [kind for kind in KINDS if kind in table]
    if len(kinds) != 1:
        raise ValueError(f"{key}={dict(table)!r}: need exactly one of {', '.join(KINDS)}")
    [kind] = kinds
    types: dict[str, Any] = {kind: str, **KINDS[kind].keys}
    for name, value in table.items():
        if name not in types:
            raise unknown(f"{key} key", name, types)
        if not isinstance(value, types[name]) or isinstance(value, bool):
            raise ValueError(f"{key}.{name}={value!r}: need {_words(types[name])}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}.{name}={value!r}: need a finite number")
    if "prompt" in table and "prompts" in table:
        raise ValueError(f"{key}: need prompt or prompts, not both")
    choices: dict[str, Sequence[str]] = {
        "model": tuple(EMBEDDED_MODELS),
        "problem": tuple(PROBLEMS),
        "schedule": tuple(SCHEDULES),
        "dtype": tuple(DTYPES),
    }
    for name, offered in choices.items():
        if name in table and table[name] not in offered:
            raise unknown(f"{key}.{name}", table[name], offered)
    return SubjectTable(key, kind, dict(table), base, contenders, metrics)


def parse_subject(text: str, key: str) -> dict[str, Any]:
    """The table of ``name:key=value``, ``kind=name:key=value``."""
    first, *rest = split(text.strip(), ":")
    parts = [first]
    for part in rest:
        if "=" in part:
            parts.append(part)
        elif "=" in parts[-1]:
            parts[-1] += f":{part}"  # as in edm=module:function, device=cuda:0
        else:
            raise ValueError(f"{key}={text!r}: need options as key=value, not {part!r}")
    kind, equals, name = parts[0].partition("=")
    table: dict[str, Any] = {kind: unquoted(name)} if equals else {"model": parts[0]}
    for part in parts[1:]:
        option, _, value = part.partition("=")
        if option in table:
            raise ValueError(f"{key}={text!r}: {option} is said twice")
        table[option] = option_value(value)
    return table


def _only(table: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: table[name] for name in names if name in table}


def _rest(table: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What opens a subject beside its name."""
    return {key: value for key, value in table.items() if key not in (kind, *OF_IMAGES)}


def _words(kinds: type | tuple[type, ...]) -> str:
    names = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
    listed = kinds if isinstance(kinds, tuple) else (kinds,)
    said = [kind for kind in listed if kind is not int or float not in listed]
    return " or ".join(names[kind] for kind in said)


def _open_model(table: Mapping[str, Any]) -> Subject:
    return embedded_subject(
        embedded_model(table["model"]),
        float(table.get("guidance", 1.0)),
        dtype=DTYPES[table.get("dtype", "float32")],
        device=table.get("device", "cpu"),
    )


def _open_pipeline(table: Mapping[str, Any]) -> Subject:
    said = _rest(table, "pipeline")
    prompts = said.pop("prompts", None)
    if prompts is not None:
        said["prompts"] = read_prompts(Path(prompts))
    return open_pipeline(table["pipeline"], **said)


def _open_unet(table: Mapping[str, Any]) -> Subject:
    return unet_subject(table["unet"], **_rest(table, "unet"))


def _open_edm(table: Mapping[str, Any]) -> Subject:
    return edm_subject(table["edm"], **_rest(table, "edm"))


def _open_problem(table: Mapping[str, Any]) -> Subject:
    name, schedule = table["problem"], table.get("schedule", "vp-linear")
    return analytic(PROBLEMS[name](), SCHEDULES[schedule](), name=f"{name}, {schedule}")


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a file that are not empty; ValueError if there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts={str(path)!r} cannot be read: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise ValueError(f"prompts={str(path)!r}: need a file with a prompt a line")
    return found


Types = dict[str, type | tuple[type, ...]]
_NUMBER = (int, float)
_PLACE: Types = {"dtype": str, "device": str}
_IMAGES: Types = {"features": (str, int), "reference": str}
KINDS: dict[str, Kind] = {
    "model": Kind({"guidance": _NUMBER, **_PLACE, **_IMAGES}, _open_model),
    "pipeline": Kind(
        {
            "prompt": str,
            "prompts": str,
            "guidance_scale": _NUMBER,
            "height": int,
            "width": int,
            "call_args": dict,
            **_PLACE,
            **_IMAGES,
        },
        _open_pipeline,
    ),
    "unet": Kind({**_PLACE, **_IMAGES}, _open_unet),
    "edm": Kind(
        {
            "shape": list,
            "preconditioning": str,
            "sigma_data": _NUMBER,
            "classes": int,
            **_PLACE,
            **_IMAGES,
        },
        _open_edm,
    ),
    "problem": Kind({"schedule": str}, _open_problem),
}

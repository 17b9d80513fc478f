r"""Suites: what ``logsnr bench`` compares, in a TOML file or by the name of a ready one.

    nfe = [5, 8, 10]               # network evaluations of each run
    seeds = [0, 1, 2]
    samples = 500                  # of each seed
    reference_samples = 100        # the first of them, which have a converged solution
    metrics = ["fid", "kid"]       # beside the distances to the converged solution
    contenders = ["PlanScheduler", "UniPCMultistep:karras", "dpm-solver++:order=3"]

    [[subjects]]
    model = "faces"                # or: pipeline, unet, edm, problem
    guidance = 2.0

A contender is text as `contenders` describes it, or a table with ``name``, ``options``, ``title``.
What a subject may say is listed at `suite_subjects.KINDS`; ``[subject_defaults]`` holds what all of
them say. Paths are relative to the file. Unknown keys are errors: nothing is ignored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from logsnr.benchmarks.harness.contenders import Contender, parse_contender
from logsnr.benchmarks.harness.feature_measures import METRICS
from logsnr.benchmarks.harness.study import Study, chosen
from logsnr.benchmarks.harness.suite_subjects import SubjectTable, parse_subject, subject_table
from logsnr.solvers.names import in_words, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONTENDERS = "contenders"
FOLDER = Path(__file__).parent.parent / "suites"
READY = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
"""The suites that come with the package."""


@dataclass(frozen=True)
class Suite:
    """What is compared; the module's text says how it is written.

    title : of the report.
    subjects, contenders : at least one of each.
    nfe, seeds, samples, shard, keep, reference_nfe, reference_samples : as of `Study`.
    metrics : some of `METRICS`.

    Raises ValueError naming the key that is wrong.
    """

    title: str = "bench"
    subjects: tuple[SubjectTable, ...] = ()
    contenders: tuple[Contender, ...] = ()
    nfe: tuple[int, ...] = (5, 8, 10)
    seeds: tuple[int, ...] = (0,)
    samples: int = 100
    shard: int = 100
    keep: int = 8
    reference_nfe: tuple[int, int] = (200, 150)
    reference_samples: int | None = None
    metrics: tuple[str, ...] = ("fid",)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.subjects:
            raise ValueError(
                "subjects=[]: need at least one; this suite leaves it to you, as in "
                "--subjects pipeline=./my-pipeline:prompts=prompts.txt"
            )
        if self.metrics:
            chosen(self.metrics, METRICS, "metrics")
        for number, table in enumerate(self.subjects):
            self.study(table)
            for other in self.subjects[:number]:
                if (table.said, table.metrics) == (other.said, other.metrics):
                    raise ValueError(f"{table.key} is {other.key} again: need each subject once")

    def study(self, table: SubjectTable) -> Study:
        """The study of one subject."""
        names = {entry.name for entry in fields(Study)} - {"contenders"}
        values = {name: getattr(self, name) for name in names}
        contenders = (*self.contenders, *table.contenders)
        if not contenders:
            raise ValueError(f"contenders=[]: {table.key} has none; as in ['PlanScheduler']")
        with in_words({"solvers": CONTENDERS}):
            return Study(contenders, **values)


def load_suite(name: str, **changes: Any) -> Suite:
    """The suite of a file, or a ready one by its name, with some keys changed.

    Raises ValueError for a file that is missing or no TOML, and for keys as `Suite` does.
    """
    path = FOLDER / f"{name}.toml" if name in READY else Path(name)
    if path.suffix != ".toml":
        raise unknown("suite", name, READY, hint="or give a TOML file")
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"suite={name!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"suite={name!r} is not TOML: {error}") from error
    return read_suite(written, path.parent, source=name, **changes)


def read_suite(
    written: Mapping[str, Any], base: Path = Path(), source: str = "", **changes: Any
) -> Suite:
    """The suite that a TOML document describes.

    base : the folder that paths begin at.
    changes : keys of the suite, with what stands there instead.
    """
    given = dict(written)
    defaults = _mapping("subject_defaults", given.pop("subject_defaults", {}))
    changed = {key: value for key, value in changes.items() if value is not None}
    given |= changed
    few, referenced = changed.get("samples"), given.get("reference_samples")
    if isinstance(few, int) and isinstance(referenced, int) and few < referenced:
        given["reference_samples"] = few  # of fewer samples, all have a converged solution
    known = [entry.name for entry in fields(Suite) if entry.name != "source"]
    for key in given:
        if key not in known:
            raise unknown("suite key", key, [*known, "subject_defaults"])
    read: dict[str, Any] = {"source": source}
    for key, value in given.items():
        # what is said on the command line begins where the user is
        place = Path() if key in changed else base
        read[key] = (
            _contenders(key, value, place) if key == CONTENDERS else _READERS[key](key, value)
        )
    place = Path() if "subjects" in changed else base
    read["subjects"] = tuple(
        _table(f"subjects[{number}]", defaults | dict(table), place, CONTENDERS not in changed)
        for number, table in enumerate(read.get("subjects", ()))
    )
    if "reference_nfe" in read and len(read["reference_nfe"]) != 2:
        raise ValueError(
            f"reference_nfe={given['reference_nfe']!r}: need two numbers, as [200, 150]"
        )
    return Suite(**read)


def _table(key: str, table: dict[str, Any], base: Path, more: bool) -> SubjectTable:
    """more : whether it may have contenders of its own."""
    own = _contenders(f"{key}.contenders", table.pop("contenders", []), base) if more else ()
    table.pop("contenders", None)
    metrics = table.pop("metrics", None)
    if metrics is not None:
        metrics = _texts(f"{key}.metrics", metrics)
        if metrics:
            chosen(metrics, METRICS, f"{key}.metrics")
    return subject_table(key, table, base, own, metrics)


def claimed(suite: Suite) -> dict[str, Any]:
    """What all runs into one folder have in common, in JSON values.

    Contenders, evaluations, seeds and subjects may be added to a folder; with these changed, its
    records would have no partners.
    """
    keys = ("samples", "shard", "keep", "reference_nfe", "reference_samples")
    return {**{key: getattr(suite, key) for key in keys}, "metrics": sorted(suite.metrics)}


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key}={value!r}: need text")
    return value


def _whole(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key}={value!r}: need a whole number")
    return value


def _wholes(key: str, value: Any) -> tuple[int, ...]:
    return tuple(_whole(key, entry) for entry in _list(key, value))


def _texts(key: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(key, entry) for entry in _list(key, value))


def _list(key: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ValueError(f"{key}={value!r}: need a list")
    return value


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}={value!r}: need a table")
    return dict(value)


def _contenders(key: str, value: Any, base: Path) -> tuple[Contender, ...]:
    return tuple(
        _contender(f"{key}[{n}]", entry, base) for n, entry in enumerate(_list(key, value))
    )


def _contender(key: str, value: Any, base: Path) -> Contender:
    if isinstance(value, str):
        return parse_contender(value, key, base)
    table = _mapping(key, value)
    for name in table:
        if name not in ("name", "options", "title"):
            raise unknown(f"{key} key", name, ("name", "options", "title"))
    if "name" not in table:
        raise ValueError(f"{key}={value!r}: need a name")
    named = parse_contender(_text(f"{key}.name", table["name"]), key, base)
    options = {**named.options, **_mapping(f"{key}.options", table.get("options", {}))}
    title = _text(f"{key}.title", table.get("title", ""))
    try:
        json.dumps(options, allow_nan=False)
        return replace(named, options=options, title=title)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}={value!r}: {error}") from error


def _subjects(key: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple(_subject(f"{key}[{n}]", entry) for n, entry in enumerate(_list(key, value)))


def _subject(key: str, value: Any) -> Mapping[str, Any]:
    return parse_subject(value, key) if isinstance(value, str) else _mapping(key, value)


_READERS: dict[str, Any] = {
    "title": _text,
    "subjects": _subjects,
    "nfe": _wholes,
    "seeds": _wholes,
    "samples": _whole,
    "shard": _whole,
    "keep": _whole,
    "reference_nfe": _wholes,
    "reference_samples": _whole,
    "metrics": _texts,
}

"""The numbers of a report: one row a contender and NFE, with the spread over seeds.

Tables for people, Markdown and JSON are all made from these rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from logsnr.benchmarks.harness.protocol import text_of
from logsnr.benchmarks.metrics.spread import Spread, spread
from logsnr.benchmarks.reports.gathered import Entry, Setting, leaves
from logsnr.benchmarks.reports.quantities import (
    BOOKKEEPING,
    COSTS,
    REAL,
    Quantity,
    ordered,
    quantity,
)

OK = "ok"
THEIRS = re.compile(r"stock|sample_|.*\.sample_|[A-Z]\w*$")
PASTED = "PlanScheduler"
OURS = re.compile(rf"{PASTED}$|.*\.safetensors$|card:")


@dataclass(frozen=True)
class Row:
    """A contender with so many evaluations, over all seeds.

    values : the spread of each quantity, by key; a quantity that no seed has is not there.
    seeds : those whose run is ok.  failures : what became of the others.
    """

    contender: str
    nfe: int
    values: Mapping[str, Spread]
    seeds: tuple[Any, ...]
    failures: tuple[str, ...]
    entries: tuple[Entry, ...] = field(repr=False)

    def mean(self, key: str) -> float | None:
        """The mean over seeds, or None."""
        found = self.values.get(key)
        return None if found is None else found.mean


@dataclass(frozen=True)
class Table:
    """All rows of a setting.

    contenders : their names, in the order of the records; ours: which of them are of this project.
    options : what the records say of each contender.
    """

    setting: Setting
    rows: tuple[Row, ...]
    contenders: tuple[str, ...]
    ours: Mapping[str, bool]
    options: Mapping[str, Mapping[str, str]]

    @cached_property
    def nfe(self) -> list[int]:
        """Numbers of evaluations, rising."""
        return sorted({row.nfe for row in self.rows})

    @cached_property
    def seeds(self) -> list[Any]:
        """All seeds."""
        return sorted({entry.record["seed"] for row in self.rows for entry in row.entries}, key=str)

    @cached_property
    def quantities(self) -> list[Quantity]:
        """What any row has."""
        return ordered({key for row in self.rows for key in row.values})

    @cached_property
    def qualities(self) -> list[Quantity]:
        """Of those, what has a better direction and is no cost."""
        return [found for found in self.quantities if found.better and found.key not in COSTS]

    def row(self, contender: str, nfe: int) -> Row | None:
        """The row of a cell, or None."""
        return self._cells.get((contender, nfe))

    @cached_property
    def _cells(self) -> dict[tuple[str, int], Row]:
        return {(row.contender, row.nfe): row for row in self.rows}

    def best(self, key: str, nfe: int, ours: bool | None = None) -> Row | None:
        """The best row at ``nfe``, of ours or of others only if asked; None without any."""
        sign = quantity(key).better
        rows = [
            row
            for row in self.rows
            if row.nfe == nfe and key in row.values and ours in (None, self.ours[row.contender])
        ]
        return min(rows, key=lambda row: -sign * row.values[key].mean) if sign and rows else None

    def as_good(self, key: str, best: Row) -> list[Row]:
        """Rows of the same NFE whose difference to the best is below two standard errors of it."""
        least = best.values[key]
        found = []
        for row in self.rows:
            other = row.values.get(key)
            if row is best or row.nfe != best.nfe or other is None:
                continue
            errors = [s.deviation / math.sqrt(s.count) for s in (least, other) if s.deviation]
            if abs(other.mean - least.mean) <= 2 * math.hypot(*errors, 0.0):
                found.append(row)
        return found

    def reference(self, key: str) -> Spread | None:
        """What the converged solutions of all seeds have under this key.

        None where they have fewer samples than the contenders and the count matters.
        """
        fewer = self.setting.facts.get("problem.reference_samples", "null")
        if key != "error_bar" and fewer not in ("null", str(self.setting.samples)):
            return None
        return _spread(entry.record.get(key) for entry in self.setting.references.values())

    def real(self, key: str) -> Spread | None:
        """What real data have against real data, where the records say so."""
        entries = [*self.setting.entries, *self.setting.references.values()]
        names = [key + ending for ending in REAL]
        return _spread(entry.record.get(name) for entry in entries for name in names)


def tabulate(setting: Setting) -> Table:
    """The rows of a setting: by contender, in the order of the records, then by NFE."""
    names = _names(setting.entries)
    groups: dict[tuple[str, int], list[Entry]] = {}
    options: dict[str, Mapping[str, str]] = {}
    ours: dict[str, bool] = {}
    for entry in setting.entries:
        record = entry.record
        name = names[_contender(record)]
        options[name] = {"solver": str(record["solver"]), **_options(record)}
        ours[name] = is_ours(str(record["solver"]))
        groups.setdefault((name, record["nfe"]), []).append(entry)
    contenders = tuple(dict.fromkeys(name for name, _ in groups))
    place = {name: i for i, name in enumerate(contenders)}
    rows = tuple(
        _row(name, nfe, entries, setting.samples)
        for (name, nfe), entries in sorted(
            groups.items(), key=lambda item: (place[item[0][0]], item[0][1])
        )
    )
    return Table(setting, rows, contenders, ours, options)


def is_ours(solver: str) -> bool:
    """Whether a contender is of this project: a solver's name, a plan, or PlanScheduler."""
    return bool(OURS.match(solver)) or not THEIRS.match(solver)


def as_json(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """The rows as JSON values."""
    return [
        {
            "setting": table.setting.letter,
            "model": table.setting.model,
            "contender": row.contender,
            "nfe": row.nfe,
            "seeds": list(row.seeds),
            "failures": list(row.failures),
            **{
                key: {
                    "mean": value.mean,
                    "deviation": value.deviation,
                    "low": value.low,
                    "high": value.high,
                }
                for key, value in row.values.items()
            },
        }
        for table in tables
        for row in table.rows
    ]


def _row(name: str, nfe: int, entries: Sequence[Entry], samples: int | None) -> Row:
    good = [entry.record for entry in entries if entry.record.get("status", OK) == OK]
    failures = tuple(
        f"seed {record['seed']}: {record.get('status')}"
        + (f" ({record['note']})" if record.get("note") else "")
        for record in (entry.record for entry in entries)
        if record.get("status", OK) != OK
    )
    keys = {
        key
        for record in good
        for key, value in record.items()
        if _number(value) is not None and key not in BOOKKEEPING and not key.endswith(REAL)
    }
    found = {key: _spread(record.get(key) for record in good) for key in keys}
    values = {key: value for key, value in found.items() if value is not None}
    if samples and "seconds" in values:
        each = [record["seconds"] / samples for record in good if _number(record.get("seconds"))]
        values["seconds"] = spread(each)
    return Row(
        name,
        nfe,
        values,
        tuple(record["seed"] for record in good),
        failures,
        tuple(entries),
    )


def _spread(values: Iterable[Any]) -> Spread | None:
    numbers = [number for number in map(_number, values) if number is not None]
    return spread(numbers) if numbers else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _word(key: str, value: str) -> str:
    """An option as the command line writes it, in short where it has a word for it."""
    family = re.fullmatch(r"use_(\w+)_sigmas", key)
    if family and value == "true":
        return family[1]
    return value if key == "timestep_spacing" else f"{key}={value}"


def _options(record: Mapping[str, Any]) -> dict[str, str]:
    return dict(leaves(record["options"])) if record["options"] else {}


def _contender(record: Mapping[str, Any]) -> str:
    return text_of([record["solver"], record["options"]])


def _names(entries: Sequence[Entry]) -> dict[str, str]:
    """A name for each contender: its solver, with the options in which it differs from others."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for entry in entries:
        record = entry.record
        found.setdefault(str(record["solver"]), {})[_contender(record)] = _options(record)
    names = {}
    for solver, variants in found.items():
        keys = sorted({key for options in variants.values() for key in options})
        values = {key: {options.get(key, "") for options in variants.values()} for key in keys}
        telling = [key for key in keys if len(values[key]) > 1]
        for contender, options in variants.items():
            words = [_word(key, options[key]) for key in telling if key in options]
            short = solver if solver == PASTED else solver.removesuffix("Scheduler")
            names[contender] = ":".join([short, *words])
    return names

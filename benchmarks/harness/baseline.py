"""An earlier run as the measure of this one, for tests that fail when samplers get worse.

Only records of one protocol are compared, seed by seed; a value is the mean over the seeds that
both have. What has no partner is said, with the first things in which the nearest one differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from logsnr.benchmarks.harness.protocol import PROTOCOL, Record, differences, identity
from logsnr.benchmarks.harness.records import STATUS, load
from logsnr.benchmarks.harness.runner import OK
from logsnr.benchmarks.harness.study import REFERENCE

LOWER = ("rmse", "rmse_median", "fid", "sliced_wasserstein", "kl")
HIGHER = ("inception_score", "precision", "recall", "density", "coverage")
"""Metrics whose ratio means something: a kernel distance may be 0 or negative."""


@dataclass(frozen=True)
class Verdict:
    """lines : what to tell.  worse : whether a metric is worse by more than was allowed."""

    lines: tuple[str, ...]
    worse: bool


def tolerance(text: str | None, baseline: Path | None) -> float | None:
    """The share that ``--fail-if-worse`` allows: "2%" and "0.02" are the same; None: no limit.

    Raises ValueError for what is no share, and without a baseline.
    """
    if text is None:
        return None
    if baseline is None:
        raise ValueError(f"fail_if_worse={text!r}: needs --baseline, the folder to compare with")
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"fail_if_worse={text!r}: need a share, as in 2% or 0.02")
    return value


@dataclass(frozen=True)
class Baseline:
    """The records of an earlier run, and the folder in which they are."""

    folder: Path
    records: Mapping[str, Record]


def open_baseline(folder: Path, out: Path | None = None) -> Baseline:
    """The earlier run in ``folder``.

    out : where the present run writes, which must be another place.

    Raises ValueError for a folder without records, with damaged ones, and for ``out`` itself.
    """
    if out is not None and folder.resolve() == out.resolve():
        raise ValueError(f"baseline={str(folder)!r}: need another folder than that of --out")
    try:
        records = load(folder, (STATUS,)) if folder.is_dir() else {}
    except ValueError as error:
        raise ValueError(f"baseline={str(folder)!r}: {error}") from error
    if not records:
        raise ValueError(f"baseline={str(folder)!r}: no records there")
    return Baseline(folder, records)


def compare_folders(baseline: Path, records: Sequence[Record], allowed: float | None) -> Verdict:
    """`compare` with the run in a folder."""
    return compare(open_baseline(baseline), records, allowed)


def compare(baseline: Baseline, records: Sequence[Record], allowed: float | None) -> Verdict:
    """This run's records against those of an earlier one.

    allowed : how much worse a metric may be, as a share of the baseline's value; None judges
        nothing. A run that diverged or failed where the baseline's did not is worse.

    Raises ValueError where no two records may be compared.
    """
    theirs = baseline.records
    runs = [record for record in records if record["solver"] != REFERENCE]
    pairs = [(record, theirs[identity(record)]) for record in runs if identity(record) in theirs]
    if not pairs:
        reason = _why(runs[0], theirs.values()) if runs else "this run has no records"
        raise ValueError(
            f"baseline={str(baseline.folder)!r} has nothing of the same protocol: {reason}"
        )
    lines, worse = [], False
    for name, group in _grouped(pairs):
        for line, bad in _judged(group, allowed):
            worse = worse or bad
            lines.append(f"{'WORSE' if bad else 'ok'}: {name}: {line}")
    alone = len(runs) - len(pairs)
    if alone:
        missing = next(record for record in runs if identity(record) not in theirs)
        lines.append(f"{alone} records have no partner: {_why(missing, theirs.values())}")
    lines.append(f"{len(pairs)} records compared with {baseline.folder}")
    return Verdict(tuple(lines), worse)


def _grouped(
    pairs: Iterable[tuple[Record, Record]],
) -> list[tuple[str, list[tuple[Record, Record]]]]:
    """The pairs that differ in nothing but the seed, with what they are called."""
    groups: dict[str, tuple[str, list[tuple[Record, Record]]]] = {}
    for new, old in pairs:
        options = "".join(f":{key}={value}" for key, value in new["options"].items())
        guidance = new["problem"].get("guidance", 1)
        scale = "" if guidance == 1 else f", guidance {guidance}"
        name = f"{new['solver']}{options}, {new['nfe']} NFE, {new['model']}{scale}"
        alike = identity(dict(new, seed=None))
        groups.setdefault(alike, (name, []))[1].append((new, old))
    return list(groups.values())


def _judged(
    group: Sequence[tuple[Record, Record]], allowed: float | None
) -> list[tuple[str, bool]]:
    """A line for each metric that both have, and for each run that ended otherwise.

    A metric that the baseline has and this run lacks cannot be judged, which is no pass.
    """
    found = []
    for new, old in group:
        if new[STATUS] != old[STATUS]:
            text = f"seed {new['seed']} was {old[STATUS]}, is {new[STATUS]}"
            found.append((text, allowed is not None and old[STATUS] == OK))
    ended = [(new, old) for new, old in group if new[STATUS] == old[STATUS] == OK]
    for name in (*LOWER, *HIGHER):
        both = [(new.get(name), old.get(name)) for new, old in ended]
        lacking = sum(new is None and old is not None for new, old in both)
        if lacking:
            seeds = "1 seed" if lacking == 1 else f"{lacking} seeds"
            found.append((f"{name} is missing of {seeds} now", allowed is not None))
        values = [(new, old) for new, old in both if new is not None and old is not None]
        if not values:
            continue
        now, then = (fmean(side) for side in zip(*values, strict=True))
        change = (now - then) / abs(then) if then else (0.0 if now == then else float("inf"))
        loss = -change if name in HIGHER else change
        text = f"{name} {then:.4g} -> {now:.4g} ({change:+.1%})"
        found.append((text, allowed is not None and loss > allowed))
    return found


def _why(record: Mapping[str, object], others: Iterable[Record]) -> str:
    """In what the nearest record differs."""
    lists = (differences(_protocol(record), _protocol(other)) for other in others)
    return "; ".join(min(lists, key=len)[:3])


def _protocol(record: Mapping[str, object]) -> dict[str, object]:
    return {key: record[key] for key in PROTOCOL}

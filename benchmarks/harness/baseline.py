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


def compare_folders(baseline: Path, records: Sequence[Record], allowed: float | None) -> Verdict:
    """This run's records against those of ``baseline``.

    allowed : how much worse a metric may be, as a share of the baseline's value; None judges
        nothing. A run that diverged or failed where the baseline's did not is worse.

    Raises ValueError for a folder without records, and where no two records may be compared.
    """
    if not baseline.is_dir() or not (theirs := load(baseline, (STATUS,))):
        raise ValueError(f"baseline={str(baseline)!r}: no records there")
    runs = [record for record in records if record["solver"] != REFERENCE]
    pairs = [(record, theirs[identity(record)]) for record in runs if identity(record) in theirs]
    if not pairs:
        reason = _why(runs[0], theirs.values()) if runs else "this run has no records"
        raise ValueError(f"baseline={str(baseline)!r} has nothing of the same protocol: {reason}")
    lines, worse = [], False
    for name, group in _grouped(pairs).items():
        for line, bad in _judged(group, allowed):
            worse = worse or bad
            lines.append(f"{'WORSE' if bad else 'ok'}: {name}: {line}")
    alone = len(runs) - len(pairs)
    if alone:
        missing = next(record for record in runs if identity(record) not in theirs)
        lines.append(f"{alone} records have no partner: {_why(missing, theirs.values())}")
    lines.append(f"{len(pairs)} records compared with {baseline}")
    return Verdict(tuple(lines), worse)


def _grouped(pairs: Iterable[tuple[Record, Record]]) -> dict[str, list[tuple[Record, Record]]]:
    groups: dict[str, list[tuple[Record, Record]]] = {}
    for new, old in pairs:
        options = "".join(f":{key}={value}" for key, value in new["options"].items())
        guidance = new["problem"].get("guidance", 1)
        scale = "" if guidance == 1 else f", guidance {guidance}"
        name = f"{new['solver']}{options}, {new['nfe']} NFE, {new['model']}{scale}"
        groups.setdefault(name, []).append((new, old))
    return groups


def _judged(
    group: Sequence[tuple[Record, Record]], allowed: float | None
) -> list[tuple[str, bool]]:
    """A line for each metric that both have, or one for runs that ended otherwise."""
    for new, old in group:
        if new[STATUS] != old[STATUS]:
            text = f"seed {new['seed']} was {old[STATUS]}, now it {new[STATUS]}"
            return [(text, allowed is not None and old[STATUS] == OK)]
    found = []
    for name in (*LOWER, *HIGHER):
        both = [(new.get(name), old.get(name)) for new, old in group]
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

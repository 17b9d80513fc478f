"""Append-only JSON lines: one record for each (solver, options, NFE, seed) on a problem.

A record is written as one line as soon as it is measured, so a killed run loses nothing that it
had finished, and a run that is asked for the same again finds it by its identity and goes on with
what is missing. Records are plain dictionaries with at least the keys of ``IDENTITY``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Record = dict[str, Any]

IDENTITY = ("solver", "options", "nfe", "seed", "problem")


def identity(record: Mapping[str, Any]) -> str:
    """What was measured, as text: equal for two records of one measurement.

    Raises ValueError naming a key of ``IDENTITY`` that the record lacks.
    """
    missing = [key for key in IDENTITY if key not in record]
    if missing:
        raise ValueError(f"record lacks {missing[0]!r}: need all of {', '.join(IDENTITY)}")
    return json.dumps({key: record[key] for key in IDENTITY}, sort_keys=True)


def append(path: Path, record: Record) -> None:
    """Add one line to the file, which is created with its folder where it does not exist.

    Numbers that are not finite become null. A last line that a killed run left unfinished is cut
    off first, so that it cannot run into this one.
    """
    identity(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite(record), allow_nan=False) + "\n"
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())


def load(path: Path, keys: Sequence[str] = ()) -> dict[str, Record]:
    """The records by identity, in the order of the file; the last of one identity wins.

    An unfinished last line is left out, a missing file is empty. Raises ValueError naming the
    line for anything else that is not a record, or lacks one of ``keys``.
    """
    if not path.exists():
        return {}
    *lines, _ = path.read_text(errors="replace").split("\n")
    return {identity(record): record for record in _parsed(path, lines, keys)}


def _parsed(path: Path, lines: Iterable[str], keys: Sequence[str]) -> Iterable[Record]:
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            identity(record)
            missing = [key for key in keys if key not in record]
            if missing:
                raise ValueError(f"record lacks {missing[0]!r}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a record: {error}") from error
        yield record


def load_tensor(path: Path, name: str = "x") -> Tensor:
    """A tensor that was kept beside the records; ValueError if the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)[name]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, to have it made anew") from error


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value

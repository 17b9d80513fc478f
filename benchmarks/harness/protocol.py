"""What was measured, as one value: equal protocols, and only those, are one measurement.

The **protocol** of a measurement has six parts, JSON values all of them:

    solver, options    the contender: a name, and everything that was said beside it
    nfe                network evaluations that it may spend; None for a converged solution
    seed               of the starts and of the noise on the way
    model              what the network is called
    problem            all the rest: hash of the weights and of the noise schedule, call or labels,
                       guidance, dtype, device, ends, samples of a seed and of a shard, and for
                       distances the hashes of what they are taken to

Its `identity` finds a record again, its `digest` names files. What the protocol cannot decide is
recorded beside it (versions, the grid as it was laid out, evaluations as they were counted,
seconds) and makes no other measurement of it; `differences` says in what two records differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from logsnr.solvers.provenance import releases

PROTOCOL = ("solver", "options", "nfe", "seed", "model", "problem")
PACKAGES = ("logsnr", "torch", "diffusers")

Record = dict[str, Any]
"""A measurement: the keys of `PROTOCOL`, ``status``, and what was measured."""


def identity(record: Mapping[str, Any]) -> str:
    """The protocol as text, the same for two records of one measurement.

    Raises ValueError naming a part of the protocol that the record lacks.
    """
    missing = [key for key in PROTOCOL if key not in record]
    if missing:
        raise ValueError(f"record lacks {missing[0]!r}: need all of {', '.join(PROTOCOL)}")
    return text_of({key: record[key] for key in PROTOCOL})


def digest(value: Any, size: int = 16) -> str:
    """So many hexadecimal digits that tell JSON values apart; of a record, give its protocol."""
    return hashlib.sha256(text_of(value).encode()).hexdigest()[:size]


def key_of(record: Mapping[str, Any]) -> str:
    """The digest of a record's protocol, which names its files."""
    return hashlib.sha256(identity(record).encode()).hexdigest()[:16]


def text_of(value: Any) -> str:
    """JSON with sorted keys; numbers that are not finite are null."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value), sort_keys=True)


@cache
def versions() -> Mapping[str, str]:
    """Releases of what computes the numbers."""
    return releases(PACKAGES)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Where two protocols (or records) differ, a line an entry: ``problem.dtype: a | b``."""
    flat, other = dict(_leaves(first)), dict(_leaves(second))
    names = [*flat, *(name for name in other if name not in flat)]
    return [
        f"{name}: {flat.get(name, 'absent')} | {other.get(name, 'absent')}"
        for name in names
        if flat.get(name, "absent") != other.get(name, "absent")
    ]


def finite(value: Any) -> Any:
    """The value with None for numbers that are not finite, lists for tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, f"{name}.{key}" if name else str(key))
    else:
        yield name, text_of(value)

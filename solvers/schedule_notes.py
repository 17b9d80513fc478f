"""How model statistics remember the noise schedule that they were measured on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .schedules import NoiseSchedule

_PATH = 9  # places at which schedules are compared


def schedule_note(schedule: NoiseSchedule, first: float, last: float) -> dict[str, Any]:
    """What statistics note of their schedule, in JSON values.

    "schedule" is its ``repr``, for people; "path" has [t, alpha] at lambda evenly spaced from
    ``first`` to ``last``, since other schedules may have the same name and the same one others.
    """
    times = schedule.time(torch.linspace(first, last, _PATH, dtype=torch.float64))
    path = zip(times.tolist(), schedule.alpha(times).tolist(), strict=True)
    return {
        "schedule": repr(schedule),
        "path": [[float(f"{value:.9g}") for value in entry] for entry in path],
    }


def same_schedule(noted: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether two notes, of the same ends, are of one schedule.

    A note without a path is compared by name, with numbers for what they are worth; one without
    a name is of any schedule.
    """
    if "path" in noted:
        there, path = np.ravel(noted["path"]), np.ravel(here["path"])
        return np.allclose(there, path, rtol=1e-5, atol=1e-9)
    if "schedule" not in noted:
        return True
    words, numbers = _split(noted["schedule"])
    our_words, our_numbers = _split(here["schedule"])
    return words == our_words and np.allclose(numbers, our_numbers, rtol=1e-5, atol=0)


def _split(name: str) -> tuple[list[str], list[float]]:
    number = r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?"
    return re.split(number, name), [float(found) for found in re.findall(number, name)]

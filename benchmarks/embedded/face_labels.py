"""What can be asked of an embedded face, and the integer that says it to the network.

A label is a number in mixed radix: one place for each attribute of ATTRIBUTES, 0 where it is left
open and 1, 2, ... for its values in turn. Label 0 leaves everything open: the null label.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": ("blue", "purple", "lavender", "pink", "peach"),
    "skin": ("light", "medium", "tan", "dark"),
    "clothing": ("blue", "green", "red", "yellow"),
    "hair": ("short", "long"),
    "glasses": ("no", "yes"),
    "hat": ("no", "yes"),
}
SHARES: dict[str, tuple[float, ...]] = {
    "background": (0.2,) * 5,
    "skin": (0.25,) * 4,
    "clothing": (0.25,) * 4,
    "hair": (24 / 45, 21 / 45),
    "glasses": (0.6, 0.4),
    "hat": (0.75, 0.25),
}
"""How often each value is drawn, independently of the others."""

NUM_LABELS = math.prod(len(values) + 1 for values in ATTRIBUTES.values())


def face_label(**attributes: str) -> int:
    """The label of a face with these attributes; those not given are left open.

    `face_label(hair="long", glasses="yes")`. Raises ValueError for an attribute or a value that
    ATTRIBUTES has not.
    """
    unknown = sorted(attributes.keys() - ATTRIBUTES.keys())
    if unknown:
        raise ValueError(f"no attribute is called {unknown[0]!r}; there are {list(ATTRIBUTES)}")
    label = 0
    for name, values in ATTRIBUTES.items():
        value = attributes.get(name)
        if value is not None and value not in values:
            raise ValueError(f"{name} is {value!r}; it must be one of {values}")
        label = label * (len(values) + 1) + (0 if value is None else 1 + values.index(value))
    return label


def face_attributes(label: int) -> dict[str, str]:
    """The attributes that a label sets: the inverse of `face_label`."""
    if not 0 <= label < NUM_LABELS:
        raise ValueError(f"label is {label}; it must be in 0..{NUM_LABELS - 1}")
    places = split_labels(torch.tensor([label]))[0].tolist()
    named = zip(ATTRIBUTES.items(), places, strict=True)
    return {name: values[place - 1] for (name, values), place in named if place > 0}


def split_labels(labels: Tensor) -> Tensor:
    """The places (B, 6) of labels (B,), in the order of ATTRIBUTES: 0 for open, 1 for the first."""
    places = []
    for values in reversed(ATTRIBUTES.values()):
        places.append(labels % (len(values) + 1))
        labels = labels // (len(values) + 1)
    return torch.stack(places[::-1], dim=-1)


def join_labels(places: Tensor) -> Tensor:
    """The labels (B,) of places (B, 6): the inverse of `split_labels`."""
    labels = torch.zeros_like(places[..., 0])
    for index, values in enumerate(ATTRIBUTES.values()):
        labels = labels * (len(values) + 1) + places[..., index]
    return labels


def face_turns(numbers: Tensor) -> Tensor:
    """The labels (B,) of samples with these numbers 0, 1, ...; all attributes are set.

    Number i has the values that the fractional parts of (i + 1/2) sqrt(p) fall on, one prime p an
    attribute: evenly spread over all combinations, in the proportions of the drawn faces.
    """
    middles = numbers.double() + 0.5
    places = []
    for shares, prime in zip(SHARES.values(), (2, 3, 5, 7, 11, 13), strict=True):
        bounds = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
        places.append(1 + torch.bucketize((middles * math.sqrt(prime)) % 1, bounds))
    return join_labels(torch.stack(places, dim=1))

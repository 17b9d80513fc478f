r"""Scalar arithmetic on floats and on 0-d tensors that carry a gradient.

A `Number` is a Python float (float64), or a 0-d float64 tensor where somebody wants a gradient with
respect to the nodes of a grid. Operators work on both; the functions here do what operators cannot.
Floats take the path of ``math`` and NumPy, so that they cost and give what they always did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Number = float
"""A float or a 0-d float64 tensor; typed as a float, since who computes with one need not know."""


def is_tensor(x: Any) -> bool:
    """Whether a number is a tensor."""
    return isinstance(x, Tensor)


def plain(x: Any) -> float:
    """The number as a float, without its gradient."""
    return float(x.detach()) if isinstance(x, Tensor) else float(x)


def exp(x: Any) -> Any:
    """e^x."""
    return torch.exp(x) if isinstance(x, Tensor) else math.exp(x)


def expm1(x: Any) -> Any:
    """e^x - 1."""
    return torch.expm1(x) if isinstance(x, Tensor) else math.expm1(x)


def log(x: Any) -> Any:
    """The natural logarithm."""
    return torch.log(x) if isinstance(x, Tensor) else math.log(x)


def log1p(x: Any) -> Any:
    """log(1 + x)."""
    return torch.log1p(x) if isinstance(x, Tensor) else math.log1p(x)


def sqrt(x: Any) -> Any:
    """The square root."""
    return torch.sqrt(x) if isinstance(x, Tensor) else math.sqrt(x)


def sin(x: Any) -> Any:
    """The sine."""
    return torch.sin(x) if isinstance(x, Tensor) else math.sin(x)


def cos(x: Any) -> Any:
    """The cosine."""
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def atan(x: Any) -> Any:
    """The inverse tangent."""
    return torch.atan(x) if isinstance(x, Tensor) else math.atan(x)


def hypot(x: Any, y: Any) -> Any:
    """sqrt(x^2 + y^2)."""
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return (x * x + y * y) ** 0.5
    return math.hypot(x, y)


def array(values: Sequence[Any]) -> Any:
    """Numbers, or rows of them, as one float64 array: NumPy's, or torch's where one is a tensor."""
    rows = [entry if isinstance(entry, list | tuple) else [entry] for entry in values]
    if not any(isinstance(x, Tensor) for row in rows for x in row):
        return np.array(values)
    stacked = torch.stack([torch.stack([_tensor(x) for x in row]) for row in rows])
    return stacked if any(isinstance(entry, list | tuple) for entry in values) else stacked[:, 0]


def alike(constant: np.ndarray, number: Any) -> Any:
    """The array ``constant`` in the form in which ``number`` can be computed with it."""
    wanted = isinstance(number, Tensor) and not isinstance(constant, Tensor)
    return torch.from_numpy(np.asarray(constant)) if wanted else constant


def exps(values: Any) -> Any:
    """e^x of every entry of an `array`."""
    return torch.exp(values) if isinstance(values, Tensor) else np.exp(values)


def merged(values: Any, constants: np.ndarray) -> Any:
    """An `array` and constants in one, rising."""
    if isinstance(values, Tensor):
        return torch.cat([values, torch.from_numpy(constants)]).sort().values
    return np.unique(np.concatenate([values, constants]))


def entries(values: Any) -> list[Any]:
    """The numbers of a vector: floats, or 0-d tensors."""
    return list(values.unbind()) if isinstance(values, Tensor) else values.tolist()


def solve(matrix: Any, vector: Any) -> Any:
    """The solution of a linear system of two `array`s."""
    if not isinstance(matrix, Tensor) and not isinstance(vector, Tensor):
        return np.linalg.solve(matrix, vector)
    return torch.linalg.solve(_tensor(matrix), _tensor(vector))


def inverse(matrix: Any) -> Any:
    """The inverse of an `array`."""
    return torch.linalg.inv(matrix) if isinstance(matrix, Tensor) else np.linalg.inv(matrix)


def vector(values: Iterable[Any]) -> Tensor:
    """Numbers as one float64 tensor, with their gradients."""
    listed = list(values)
    if any(isinstance(x, Tensor) for x in listed):
        return torch.stack([_tensor(x) for x in listed])
    return torch.tensor(listed, dtype=torch.float64)


def numbers(values: Tensor) -> list[Any]:
    """The entries of a float64 vector: 0-d tensors where it carries a gradient, else floats."""
    return list(values.unbind()) if values.requires_grad else values.tolist()


def _tensor(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)

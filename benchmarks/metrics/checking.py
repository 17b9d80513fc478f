"""What all metrics ask of their tensors; each error names the argument."""

from __future__ import annotations

from torch import Tensor

from logsnr.solvers.checks import is_whole


def check_values(name: str, value: Tensor) -> None:
    """ValueError unless all values are floating and finite."""
    if not value.is_floating_point():
        raise ValueError(f"{name} has dtype {value.dtype}; it must be floating")
    check_finite(name, value)


def check_finite(name: str, value: Tensor) -> None:
    """ValueError that counts the values which are not finite."""
    bad = int((~value.isfinite()).sum())
    if bad:
        raise ValueError(f"{name} has {bad} values that are not finite; all must be finite")


def vectors(name: str, value: Tensor, least: int) -> Tensor:
    """Features (N, d), N at least ``least``, as float64 on the CPU; else ValueError."""
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be (N, d), not empty")
    if len(value) < least:
        raise ValueError(f"{name} has {len(value)} samples; it must have at least {least}")
    check_values(name, value)
    return value.detach().cpu().double()


def two_sets(samples: Tensor, reference: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both sets of features as `vectors`; ValueError unless they have one dimension d."""
    both = vectors("samples", samples, least), vectors("reference", reference, least)
    if both[0].shape[1] != both[1].shape[1]:
        raise ValueError(
            f"samples have {both[0].shape[1]} features; they must have reference's "
            f"{both[1].shape[1]}"
        )
    return both


def whole(name: str, value: int, low: int, high: int | None = None) -> int:
    """A whole number in low..high; ValueError otherwise."""
    if not is_whole(value, low):
        raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {low}")
    if high is not None and value > high:
        raise ValueError(f"{name} is {value}; it must be at most {high}")
    return value

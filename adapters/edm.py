r"""Networks of Karras et al. 2022 (EDM), with and without their preconditioning.

The denoiser of a state x = x0 + sigma n is made of a raw network F by

    D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)                          (eq. 7, table 1)

         c_skip      c_out         c_in                  c_noise
    edm  s^2 / r^2   sigma s / r   1 / r                 log(sigma) / 4
    vp   1           -sigma        (sigma^2 + 1)^(-1/2)  (M - 1) t
    ve   1           sigma         1                     log(sigma / 2)

with s = sigma_data, r^2 = sigma^2 + s^2, and t the time of the linear variance-preserving schedule
at which sigma_t / alpha_t = sigma. So a "vp" network predicts epsilon of that schedule, a "ve"
network -epsilon, and an "edm" network with s = 1 minus the v of any variance-preserving one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logsnr.solvers import Denoiser, VarianceExploding, VPLinear
from logsnr.solvers.prediction import Linear

VP_SCHEDULE = VPLinear(beta_min=0.1, beta_max=20.0)
VP_STEPS = 1000  # M of table 1

Network = Callable[..., Any]


class Scalings(NamedTuple):
    """The four functions of sigma, at a tensor of sigmas."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def _edm(sigma: Tensor, sigma_data: float) -> Scalings:
    total = sigma**2 + sigma_data**2
    root = total.sqrt()
    return Scalings(sigma_data**2 / total, sigma * sigma_data / root, 1 / root, sigma.log() / 4)


def _vp(sigma: Tensor, sigma_data: float) -> Scalings:
    told = (VP_STEPS - 1) * VP_SCHEDULE.time(-sigma.log())
    return Scalings(torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), told)


def _ve(sigma: Tensor, sigma_data: float) -> Scalings:
    one = torch.ones_like(sigma)
    return Scalings(one, sigma, one, (sigma / 2).log())


PRECONDITIONINGS: dict[str, Callable[[Tensor, float], Scalings]] = {
    "edm": _edm,
    "vp": _vp,
    "ve": _ve,
}


def precondition(network: Network, kind: str = "edm", *, sigma_data: float = 0.5) -> Network:
    """The denoiser D(x, sigma, **condition) (B, *event) of a raw network F; see the module's text.

    Parameters
    ----------
    network : ``network(c_in x, c_noise, **condition)``, c_noise (B,). A module is called in the
        dtype of its parameters; the scalings and the sum are those of x.
    kind : "edm", "vp" or "ve".
    sigma_data : the standard deviation of the data, for "edm".

    Raises ValueError for an unknown kind or a sigma_data that is not positive.
    """
    if kind not in PRECONDITIONINGS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(PRECONDITIONINGS)}")
    if not 0 < sigma_data < float("inf"):
        raise ValueError(f"sigma_data={sigma_data!r}: need a positive number")
    dtype = _parameter_dtype(network)

    def denoiser(x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        scalings = PRECONDITIONINGS[kind](sigma.reshape(-1).to(torch.float64), sigma_data)
        shape = (-1, *[1] * (x.ndim - 1))
        skip, out, into = (c.to(x).reshape(shape) for c in scalings[:3])
        told = scalings.noise.to(x.device, torch.promote_types(dtype or x.dtype, torch.float32))
        raw = network((into * x).to(dtype or x.dtype), told, **condition)
        return Linear(out, skip)(raw.to(x.dtype), x)

    return denoiser


def from_edm(
    network: Network,
    *,
    preconditioning: str | None = None,
    sigma_data: float = 0.5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    class_labels: Tensor | Sequence[int] | None = None,
    **condition: Any,
) -> Denoiser:
    """An EDM network as a `Denoiser` on `VarianceExploding`.

    Parameters
    ----------
    network : ``network(x, sigma, class_labels=..., **condition)``, the denoiser D itself, as the
        networks of NVlabs/edm are; it may return float32 for states of another dtype. With
        ``preconditioning`` the raw network F.
    preconditioning, sigma_data : see `precondition`; None leaves the network as it is.
    sigma_min, sigma_max : the default ends of sampling. None is 0.002 and 80, or what the network
        supports where that is less (its attributes of these names).
    class_labels : (B, label_dim) as the network wants them, or B integers, which become one-hot
        rows if the network says its ``label_dim``. None: the network is called without.
    condition : more keyword arguments of the network.

    Raises ValueError for labels that do not fit ``label_dim``, and for values out of range.
    """
    if not callable(network):
        raise ValueError(f"network={network!r}: need a callable network(x, sigma)")
    if class_labels is not None:
        condition["class_labels"] = _labels(class_labels, getattr(network, "label_dim", None))
    low = max(0.002, float(getattr(network, "sigma_min", 0.0)))
    high = min(80.0, float(getattr(network, "sigma_max", 80.0)))
    schedule = VarianceExploding(
        low if sigma_min is None else float(sigma_min),
        high if sigma_max is None else float(sigma_max),
    )
    if preconditioning is not None:
        denoiser = precondition(network, preconditioning, sigma_data=sigma_data)
    else:
        # The networks of NVlabs cast what they are given and answer in float32.
        def denoiser(x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
            return network(x, sigma, **condition).to(x.dtype)

    return Denoiser(denoiser, schedule, "sample", condition=condition)


def _labels(labels: Tensor | Sequence[int], label_dim: int | None) -> Tensor:
    """Labels as the network wants them; (B,) integers become one-hot rows (B, label_dim)."""
    given = torch.as_tensor(labels)
    if label_dim is None:
        return given
    if label_dim == 0:
        raise ValueError("class_labels was given, but the network has label_dim=0 (none)")
    if given.ndim == 1 and not given.is_floating_point():
        if not ((given >= 0) & (given < label_dim)).all():
            raise ValueError(f"class_labels={given.tolist()}: need integers in 0..{label_dim - 1}")
        return torch.nn.functional.one_hot(given, label_dim).float()
    if given.ndim != 2 or given.shape[1] != label_dim:
        raise ValueError(
            f"class_labels has shape {tuple(given.shape)}: need (B, {label_dim}), or B integers"
        )
    return given


def _parameter_dtype(network: Network) -> torch.dtype | None:
    parameters = network.parameters() if isinstance(network, torch.nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), None)

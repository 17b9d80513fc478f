"""Networks of a user's own as subjects: the UNet of a folder, a network of EDM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from logsnr.adapters.config.noise_schedules import is_flow, noise_schedule
from logsnr.adapters.edm import from_edm
from logsnr.benchmarks.harness.subjects.network import NetworkSubject
from logsnr.solvers import DiscreteVP

UNET, SCHEDULER = "unet", "scheduler"
SCHEDULER_CONFIG = "scheduler_config.json"


def unet_subject(
    folder: str | Path,
    *,
    scheduler: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **options: Any,
) -> NetworkSubject:
    """An unconditional network of diffusers that is called as ``unet(x, t)``.

    Parameters
    ----------
    folder : what ``save_pretrained`` wrote, of the network itself or of a pipeline with a ``unet``
        (safetensors only).
    scheduler : the folder of the scheduler whose config says the noise schedule; None looks
        beside the network and into ``scheduler/``.
    options : of `NetworkSubject`.

    Raises ValueError naming the folder in which something is missing.
    """
    path = Path(folder)
    place = path / UNET if (path / UNET).is_dir() else path
    if not (place / "config.json").is_file():
        raise ValueError(f"model={str(folder)!r}: need a folder with the config.json of a network")
    places = [path, path / SCHEDULER] if scheduler is None else [Path(scheduler)]
    found = next((p for p in places if (p / SCHEDULER_CONFIG).is_file()), None)
    if found is None:
        raise ValueError(f"scheduler={str(places[-1])!r}: need a folder with {SCHEDULER_CONFIG}")
    kind = _kind(place / "config.json")
    try:
        network = kind.from_pretrained(
            place, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"model={str(folder)!r} cannot be loaded: {error}") from error
    network = network.to(device).eval().requires_grad_(False)
    trained = _kind(found / SCHEDULER_CONFIG).from_pretrained(found)
    config = dict(trained.config)
    flow = is_flow(config)
    schedule = (
        DiscreteVP(trained.alphas_cumprod)
        if hasattr(trained, "alphas_cumprod")
        else noise_schedule(config)
    )
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    said: dict[str, Any] = {
        "name": path.name,
        "ends": {} if flow else {"final_sigmas_type": "sigma_min", "set_alpha_to_one": False},
        "prediction": "flow_prediction" if flow else config.get("prediction_type", "epsilon"),
        "network_time": (lambda t: 1000 * t) if flow else None,
        "data_range": 2.0,
        **options,
    }
    return NetworkSubject(
        network=network,
        schedule=schedule,
        shape=(network.config.in_channels, height, width),
        weights=module_digest(network),
        config=config,
        dtype=dtype,
        device=device,
        **said,
    )


def edm_subject(
    network: Callable[..., Tensor],
    shape: Sequence[int],
    name: str,
    *,
    weights: str | None = None,
    preconditioning: str | None = None,
    sigma_data: float = 0.5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    **options: Any,
) -> NetworkSubject:
    """A network of EDM, from sigma_max to sigma_min; see `from_edm` for its arguments.

    weights : a hash of what the network computes; None takes that of a module's parameters.

    Raises ValueError for a network that is no module and has no ``weights``.
    """
    denoise = from_edm(
        network,
        preconditioning=preconditioning,
        sigma_data=sigma_data,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )
    if weights is None:
        if not isinstance(network, nn.Module):
            raise ValueError("weights=None: need a hash for a network that is no module")
        weights = module_digest(network)
    said: dict[str, Any] = {"data_range": 2.0, **options}
    return NetworkSubject(
        name=name,
        network=denoise.network,
        schedule=denoise.schedule,
        shape=tuple(shape),
        weights=weights,
        prediction=denoise.native,
        network_time=denoise.network_time,
        **said,
    )


def module_digest(module: nn.Module) -> str:
    """Twelve hexadecimal digits that tell the parameters and buffers of modules apart."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:12]


def _kind(file: Path) -> Any:
    """The class of diffusers that a config names."""
    try:
        name = str(dict(json.loads(file.read_text()))["_class_name"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is no config of diffusers: {error!r}") from error
    if getattr(diffusers, name, None) is None:
        raise ValueError(f"{file} names {name}, which diffusers does not have")
    return getattr(diffusers, name)

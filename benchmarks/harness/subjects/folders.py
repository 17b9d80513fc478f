"""Networks without a pipeline as subjects: a folder with a UNet, and an EDM network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DModel
from torch import nn

from logsnr.adapters import from_edm, noise_schedule
from logsnr.benchmarks.harness.protocol import digest
from logsnr.benchmarks.harness.subjects.embedded import ENDS
from logsnr.benchmarks.harness.subjects.network import NetworkSubject
from logsnr.benchmarks.harness.subjects.opening import DTYPES, check_device
from logsnr.benchmarks.metrics.network_files import TORCHSCRIPT
from logsnr.solvers.names import in_words

INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"


def unet_subject(name: str, *, dtype: str = "float32", device: str = "cpu") -> NetworkSubject:
    """The unconditional UNet of a folder, or of an ID on the Hub, on the noise schedule beside it.

    name : a folder with ``unet/`` and ``scheduler/`` as pipelines have them, or with the files of
        both in one place, as google/ddpm-cifar10-32 has; or such an ID, which is downloaded
        (weights as safetensors only).

    Raises ValueError for anything else.
    """
    check_device(device)
    folder = Path(name)
    if not folder.is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ValueError(f"unet={name!r}: no such folder; need one, or an ID as owner/name")
    try:
        unet = _unet(name, folder, DTYPES[dtype])
        config = _scheduler_config(name, folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"unet={name!r} cannot be loaded: {error}") from error
    if unet.config.get("num_class_embeds") or unet.config.get("class_embed_type"):
        raise ValueError(f"unet={name!r}: this network wants labels; give it as a pipeline")
    size = unet.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    kind = config.get("prediction_type", "epsilon")
    flow = str(config.get("_class_name", "")).startswith("FlowMatch")
    more: dict[str, Any] = {"network_time": lambda t: 1000 * t} if flow else {}
    return NetworkSubject(
        name=folder.name or name,
        network=unet.to(device).eval().requires_grad_(False),
        schedule=noise_schedule(config),
        shape=(unet.config["in_channels"], height, width),
        weights=weights_digest(unet),
        prediction="flow_prediction" if flow else kind,
        config=config,
        ends={} if flow else ENDS,
        dtype=DTYPES[dtype],
        device=device,
        data_range=2.0,
        **more,
    )


def edm_subject(
    name: str,
    *,
    shape: Sequence[int] | None = None,
    preconditioning: str | None = None,
    sigma_data: float = 0.5,
    classes: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> NetworkSubject:
    """An EDM network on the variance-exploding schedule.

    Parameters
    ----------
    name : "module:function", where the function returns the network (a module in eval mode), or a
        TorchScript file of it. Published checkpoints are pickles of code: load them in a function
        of your own.
    shape : of a sample; None takes (img_channels, img_resolution, img_resolution) of the network.
    preconditioning, sigma_data : as of `from_edm`; None for a network that is the denoiser itself.
    classes : the labels 0 .. classes - 1 take turns; None is the network's ``label_dim``.

    Raises ValueError for what cannot be loaded, and a shape that neither says.
    """
    check_device(device)
    network = _edm_network(name)
    if isinstance(network, nn.Module):
        network = network.to(device, DTYPES[dtype]).eval()
        for parameter in network.parameters():  # of TorchScript, too
            parameter.requires_grad_(False)
    event = _shape(name, network) if shape is None else tuple(shape)
    if not event or not all(isinstance(n, int) and n > 0 for n in event):
        raise ValueError(f"shape={list(event)}: need positive whole numbers")
    if not sigma_data > 0:
        raise ValueError(f"sigma_data={sigma_data}: need a positive number")
    if classes is not None and classes < 0:
        raise ValueError(f"classes={classes}: need at least 0")
    with in_words({"kind": "preconditioning"}):
        denoise = from_edm(network, preconditioning=preconditioning, sigma_data=sigma_data)
    labels = getattr(network, "label_dim", 0) if classes is None else classes

    def conditions(indices: Sequence[int]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        turns = torch.tensor([index % labels for index in indices], device=device)
        rows = torch.nn.functional.one_hot(turns, labels).to(DTYPES[dtype])
        return {"class_labels": rows}, {"class_labels": torch.zeros_like(rows)}

    known = isinstance(network, nn.Module)
    return NetworkSubject(
        name=name.rpartition(":")[2] if ":" in name else Path(name).stem,
        network=denoise.network,
        schedule=denoise.schedule,
        shape=event,
        weights=weights_digest(network) if known else digest(name, 12),
        prediction="sample",
        conditions=conditions if labels else None,
        dtype=DTYPES[dtype],
        device=device,
        data_range=2.0,
    )


def _shape(name: str, network: Any) -> tuple[int, ...]:
    if not (hasattr(network, "img_channels") and hasattr(network, "img_resolution")):
        raise ValueError(f"edm={name!r}: need shape=, which this network does not say")
    return network.img_channels, network.img_resolution, network.img_resolution


def weights_digest(network: nn.Module) -> str:
    """Twelve hexadecimal digits of all weights."""
    sums = hashlib.sha256()
    for name, value in network.state_dict().items():
        plain = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        sums.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        sums.update(plain.numpy().tobytes())
    return sums.hexdigest()[:12]


def _unet(name: str, folder: Path, dtype: torch.dtype) -> UNet2DModel:
    apart = (folder / "unet").is_dir() if folder.is_dir() else False
    more = {"subfolder": "unet"} if apart else {}
    return UNet2DModel.from_pretrained(
        name, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False, **more
    )


def _scheduler_config(name: str, folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        return dict(diffusers.DDPMScheduler.load_config(name))
    places = (folder / "scheduler" / SCHEDULER, folder / SCHEDULER)
    for place in places:
        if place.is_file():
            return dict(json.loads(place.read_text()))
    raise ValueError(f"it has no {SCHEDULER}, in the folder or in its scheduler/")


def _edm_network(name: str) -> Any:
    if Path(name).suffix.lower() in TORCHSCRIPT:
        try:
            return torch.jit.load(name, map_location="cpu")
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"edm={name!r} is not a TorchScript file: {error}") from error
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"edm={name!r}: need module:function, or a TorchScript file")
    try:
        return getattr(import_module(module), function)()
    except Exception as error:  # it is the user's own code, which may raise anything
        raise ValueError(
            f"edm={name!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error

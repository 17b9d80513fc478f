r"""Where the samples of an estimation come from.

A source is a function ``range of sample numbers -> generator of their x0 (B, *event)``. It is a
generator because the model's own samples take network evaluations. Sample i is the same whatever
batch it is asked for in, and whatever process asks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..plan import Plan
from ..prediction import to_data
from ..requests import Batch, Evaluation, relay
from ..running import run
from .probes import SampleBatch

Source = Callable[[range], Generator[Batch, Tensor, Tensor]]

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
KEPT = 64
"""Samples of an iterable that can be asked for again."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Data:
    """A source of samples, the shape of one, and what it is called in ``about``.

    ``dtype`` is that of the data as they came; ``own`` says that the model draws them.
    """

    source: Source
    event: tuple[int, ...]
    name: str
    dtype: torch.dtype = torch.float32
    own: bool = False


def signs_and_noise(seed: int, sample: int, event: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Standard normals n and random signs v (*event) of one sample, float64, the same anywhere."""
    generator = generator_of(seed, sample, 0)
    n = torch.randn(*event, dtype=torch.float64, generator=generator)
    v = 2.0 * torch.randint(0, 2, tuple(event), dtype=torch.float64, generator=generator) - 1
    return n, v


def generator_of(seed: int, sample: int, purpose: int) -> torch.Generator:
    """The generator of one sample for one purpose, independent of every other."""
    mixed = np.random.SeedSequence([seed, sample, purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


def data_of(data: Any, *, seed: int, shape: Sequence[int] | None) -> Data:
    """The `Data` behind the ``data=`` argument of ``estimate_ems``, but for None.

    Raises ValueError for anything that does not hold samples of one shape.
    """
    if isinstance(data, str | Path):
        found = _from_path(Path(data), seed, shape)
    elif isinstance(data, Tensor | np.ndarray):
        found = _from_array("data", torch.as_tensor(data), seed)
    elif isinstance(data, torch.utils.data.DataLoader):
        raise ValueError("data is a DataLoader: pass its dataset, batches are made here")
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        if len(data) == 0:
            raise ValueError("data is empty: need at least one sample")
        first = event_of(data[0])
        found = _indexed(
            lambda i: event_of(data[i]), len(data), tuple(first.shape), seed, "dataset", first.dtype
        )
    elif isinstance(data, Iterable):
        found = _streamed(data)
    else:
        raise ValueError(
            f"data={type(data).__name__}: need a tensor (M, *event), a dataset, an iterable of "
            "samples, the path of a folder of images or of an .npy or .safetensors file, or None"
        )
    if shape is not None and tuple(shape) != found.event:
        raise ValueError(f"shape={tuple(shape)}: the samples of data have shape {found.event}")
    return found


def own_samples(
    plan: Plan, prediction: str, event: tuple[int, ...], dtype: torch.dtype, seed: int, device: Any
) -> Data:
    """The model's own samples: ``plan`` from x_T ~ N(0, sigma_T^2), then x0 at its last node."""

    def source(samples: range) -> Generator[Batch, Tensor, Tensor]:
        start, end = plan.rows[0].node, plan.rows[-1].node
        draws = [
            torch.randn(*event, dtype=torch.float64, generator=generator_of(seed, i, 1))
            for i in samples
        ]
        x_T = (start.sigma * torch.stack(draws)).to(device, dtype)
        x = yield from sampled(plan, x_T, prediction, samples)
        if end.sigma == 0:
            return x.to("cpu", torch.float64)
        # What noise is left at the end would be added to that of every node.
        output = yield SampleBatch(x[None], [end], samples)
        return to_data(prediction, end)(output[0].double().cpu(), x.double().cpu())

    name = f"the model's own samples ({plan.solver}, {plan.nfe} NFE)"
    return Data(source, event, name, dtype, own=True)


def sampled(
    plan: Plan, x_T: Tensor, prediction: str, samples: range
) -> Generator[Batch, Tensor, Tensor]:
    """``sample`` as a generator of batches: ``plan`` from the starts x_T of ``samples``."""

    def ask(evaluation: Evaluation) -> Generator[Batch, Tensor, Tensor]:
        output = yield SampleBatch(evaluation.x[None], [evaluation.node], samples)
        return output[0]

    return relay(run(plan, x_T, prediction), ask)


def event_of(item: Any) -> Tensor:
    """One sample of a dataset as a tensor: an array, a PIL image, or the first of a tuple.

    Images and arrays of 8-bit integers are scaled to [-1, 1]. ValueError for anything else.
    """
    if isinstance(item, tuple | list) and item:
        item = item[0]
    if isinstance(item, Mapping):
        known = [item[key] for key in ("image", "pixel_values", "latents") if key in item]
        item = known[0] if known else item
    if _is_image(item):
        array = np.asarray(item)
        item = torch.from_numpy(np.array(array[..., None] if array.ndim == 2 else array))
        item = item.permute(2, 0, 1)
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(np.array(item))
    if not isinstance(item, Tensor):
        raise ValueError(
            f"data gives {type(item).__name__}: need tensors, arrays or images (or tuples that "
            "begin with one, or dictionaries with 'image', 'pixel_values' or 'latents')"
        )
    return _scaled(item)


def _scaled(values: Tensor) -> Tensor:
    if values.dtype == torch.uint8:
        return values.float() / 127.5 - 1
    if not values.is_floating_point():
        raise ValueError(f"data has dtype {values.dtype}: need floating-point values, or uint8")
    return values


def _indexed(
    item: Callable[[int], Tensor],
    count: int,
    event: tuple[int, ...],
    seed: int,
    name: str,
    dtype: torch.dtype,
) -> Data:
    # Files of one class lie together: the first samples are drawn from all of them.
    order = np.random.default_rng([seed, count]).permutation(count)

    def source(samples: range) -> Generator[Batch, Tensor, Tensor]:
        yield from ()  # a source is a generator; this one needs no evaluation
        return _stack([item(int(order[i % count])) for i in samples], samples, event)

    return Data(source, event, f"{name} of {count}", dtype)


def _stack(items: Sequence[Tensor], samples: range, event: tuple[int, ...]) -> Tensor:
    for i, item in zip(samples, items, strict=True):
        if tuple(item.shape) != event:
            raise ValueError(f"data: sample {i} has shape {tuple(item.shape)}, others {event}")
        if not torch.isfinite(item).all():
            raise ValueError(f"data: sample {i} has values that are not finite")
    return torch.stack([item.detach().to("cpu", torch.float64) for item in items])


def _from_array(name: str, values: Tensor, seed: int) -> Data:
    if values.ndim < 2 or values.shape[0] == 0:
        raise ValueError(f"{name} has shape {tuple(values.shape)}: need (M, *event), M >= 1")
    dtype = _scaled(values[:1]).dtype
    event = tuple(values.shape[1:])
    return _indexed(lambda i: _scaled(values[i]), len(values), event, seed, "tensor", dtype)


def _streamed(data: Iterable[Any]) -> Data:
    """Samples in the order that ``data`` gives them; what is skipped is read and dropped.

    The first few are kept: they are asked for once more, see `check`.
    """
    stream: Iterator[Any] = iter(data)
    first = next(stream, None)
    if first is None:
        raise ValueError("data is empty: need at least one sample")
    event, dtype = tuple(event_of(first).shape), event_of(first).dtype
    held: list[Any] = [first]
    kept: list[Any] = []
    position = 0

    def source(samples: range) -> Generator[Batch, Tensor, Tensor]:
        nonlocal position
        yield from ()  # a source is a generator; this one needs no evaluation
        if samples.stop <= len(kept):
            return _stack(
                [event_of(entry) for entry in kept[: samples.stop][samples.start :]], samples, event
            )
        if samples.start < position:
            raise ValueError("data: an iterable can be read once only: pass a fresh one")
        skipped = samples.start - position
        items = [*held, *islice(stream, max(0, skipped + len(samples) - len(held)))]
        held.clear()
        kept.extend(items[: max(0, KEPT - position)])
        position = samples.stop
        if len(items) < skipped + len(samples):
            raise ValueError(
                f"data ended after {samples.start - skipped + len(items)} samples: pass "
                "samples= of at most so many"
            )
        return _stack([event_of(entry) for entry in items[skipped:]], samples, event)

    return Data(source, event, "iterable", dtype)


def _from_path(path: Path, seed: int, shape: Sequence[int] | None) -> Data:
    if path.is_dir():
        return _from_images(path, seed, shape)
    if not path.is_file():
        raise ValueError(f"data={str(path)!r} does not exist: need a folder or a file")
    if path.suffix == ".npy":
        with _readable(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim < 2 or len(array) == 0:
            raise ValueError(f"data={str(path)!r} has shape {array.shape}: need (M, *event)")
        event, dtype = tuple(array.shape[1:]), event_of(array[0]).dtype
        return _indexed(lambda i: event_of(array[i]), len(array), event, seed, path.name, dtype)
    if path.suffix == ".safetensors":
        with _readable(path):
            file = safe_open(path, framework="pt")
        names = list(file.keys())
        if len(names) != 1:
            raise ValueError(f"data={str(path)!r} holds {names}: need a file with one tensor")
        rows = file.get_slice(names[0])
        count, *event_shape = rows.get_shape()
        if not event_shape or count == 0:
            raise ValueError(f"data={str(path)!r} has shape {rows.get_shape()}: need (M, *event)")
        first = event_of(rows[0:1][0])
        return _indexed(
            lambda i: event_of(rows[i : i + 1][0]),
            count,
            tuple(event_shape),
            seed,
            path.name,
            first.dtype,
        )
    raise ValueError(f"data={str(path)!r}: need a folder of images, an .npy or .safetensors file")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever a reader of the file raises inside is a ValueError that names it."""
    try:
        yield
    except (OSError, ValueError, EOFError, SyntaxError, SafetensorError) as error:
        raise ValueError(f"data={str(path)!r} cannot be read: {error}") from error


def _is_image(item: Any) -> bool:
    image = sys.modules.get("PIL.Image")  # whoever holds an image has imported it
    return image is not None and isinstance(item, image.Image)


def _from_images(folder: Path, seed: int, shape: Sequence[int] | None) -> Data:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)
    if not files:
        raise ValueError(f"data={str(folder)!r} holds no image ({', '.join(IMAGES)})")
    if shape is not None and shape[0] not in MODES:
        raise ValueError(f"shape={tuple(shape)}: need 1, 3 or 4 channels for images")
    from PIL import Image

    with _readable(files[0]), Image.open(files[0]) as first:
        channels = shape[0] if shape is not None else 1 if first.mode in ("1", "L", "I;16") else 3
        event = (channels, first.height, first.width)

    def load(i: int) -> Tensor:
        with _readable(files[i]), Image.open(files[i]) as image:
            size, picture = (image.height, image.width), image.convert(MODES[channels])
        if size != event[1:]:
            raise ValueError(
                f"data: {files[i].name} is {size[0]} x {size[1]}, {files[0].name} is "
                f"{event[1]} x {event[2]}: need images of one size"
            )
        return event_of(picture)

    return _indexed(load, len(files), event, seed, "folder of images", torch.float32)

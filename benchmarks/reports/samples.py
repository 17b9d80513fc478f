"""Samples of equal starts side by side, and maps of their distance to the converged solution.

A setting's pictures are those of its first seed. They come from the states that records keep beside
them, where a state is a grey or colour image, else from the pictures that the subject made.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from logsnr.benchmarks.reports.gathered import Entry
from logsnr.benchmarks.reports.rows import OK, Table

MOST, COLUMNS = 8, 4
"""Samples of a run, and those side by side."""
SMALL, LARGE = 64, 192
"""Pixels up to which several samples are shown, and to which one larger picture is reduced."""

DARKEST = 0.01

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Strip:
    """The samples of one run in one picture, and their error map, if the reference was kept."""

    contender: str
    nfe: int
    picture: Image.Image
    error: Image.Image | None


@dataclass(frozen=True)
class Samples:
    """Pictures of a setting.

    seed : of all of them.  converged : the reference's, or None.  strips : by contender and NFE.
    scale : the distance, mean over channels, at which error maps are brightest; they are darkest
    at a share `DARKEST` of it, and logarithmic between.
    """

    seed: Any
    converged: Image.Image | None
    strips: tuple[Strip, ...]
    scale: float


def samples(table: Table) -> Samples | None:
    """The pictures of a setting; None where the folders hold none."""
    if not table.seeds:
        return None
    seed = table.seeds[0]
    reference = table.setting.references.get(seed)
    exact = None if reference is None else _states(reference)
    found: list[tuple[str, int, Image.Image, Array | None]] = []
    for row in table.rows:
        for entry in row.entries:
            if entry.record["seed"] != seed or entry.record.get("status", OK) != OK:
                continue
            states = _states(entry)
            picture = _mosaic(_bytes(states)) if _is_image(states) else _own(entry)
            if picture is not None:
                found.append((row.contender, row.nfe, picture, _distance(states, exact)))
    if not found:
        return None
    maps = [distance for *_, distance in found if distance is not None]
    scale = _round(max(float(np.quantile(each, 0.99)) for each in maps)) if maps else 1.0
    strips = tuple(
        Strip(
            name,
            nfe,
            picture,
            None if far is None else _map(far / scale),
        )
        for name, nfe, picture, far in found
    )
    converged = _mosaic(_bytes(exact)) if _is_image(exact) else None
    if converged is None and reference is not None:
        converged = _own(reference)
    return Samples(seed, converged, strips, scale)


def data_uri(picture: Image.Image) -> str:
    """The picture as text that stands in a page: PNG if it is small, else JPEG."""
    buffer = BytesIO()
    if max(picture.size) <= SMALL * COLUMNS:
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _states(entry: Entry) -> Array | None:
    """The first states (B, *event) that were kept, or None."""
    from logsnr.benchmarks.harness.files import load_tensors

    for name in entry.record.get("files") or ():
        path = entry.folder / str(name)
        if path.suffix == ".safetensors" and path.is_file():
            tensors, _ = load_tensors(path)
            return tensors["x"][:MOST].float().numpy() if "x" in tensors else None
    return None


def _own(entry: Entry) -> Image.Image | None:
    """The first picture that the subject made, reduced."""
    for name in entry.record.get("pictures") or ():
        path = entry.folder / str(name)
        if path.is_file():
            picture = Image.open(path).convert("RGB")
            picture.thumbnail((LARGE, LARGE))
            return picture
    return None


def _is_image(states: Array | None) -> bool:
    return states is not None and states.ndim == 4 and states.shape[1] in (1, 3)


def _bytes(states: Array | None) -> Array:
    """Images (B, H, W, 1 or 3) of states (B, C, H, W) in [-1, 1]."""
    assert states is not None
    values = ((states.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    return values.transpose(0, 2, 3, 1)


def _distance(states: Array | None, exact: Array | None) -> Array | None:
    """Mean over channels of the distance (B, H, W), or None."""
    if states is None or exact is None or states.ndim != 4:
        return None
    count = min(len(states), len(exact))
    if states.shape[1:] != exact.shape[1:]:
        return None
    return np.asarray(np.abs(states[:count] - exact[:count]).mean(1))


def _map(shares: Array) -> Image.Image:
    """Shares of the scale (B, H, W) as colours: dark at `DARKEST` and below, bright at 1."""
    from matplotlib import colormaps

    place = 1 - np.log(shares.clip(DARKEST, 1)) / np.log(DARKEST)
    return _mosaic((colormaps["magma"](place)[..., :3] * 255).astype(np.uint8))


def _mosaic(images: Array) -> Image.Image:
    """Images (B, H, W, C) in rows of `COLUMNS`, a pixel apart; if they are large, one, reduced."""
    count, height, width, channels = images.shape
    if max(height, width) > SMALL:
        large = Image.fromarray(images[0].squeeze(-1) if channels == 1 else images[0])
        large.thumbnail((LARGE, LARGE))
        return large.convert("RGB")
    columns = min(COLUMNS, count)
    lines = -(-count // columns)
    size = (lines * (height + 1) - 1, columns * (width + 1) - 1)
    canvas = np.full((*size, 4), 0, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        place = canvas[top : top + height, left : left + width]
        place[..., :3], place[..., 3] = image, 255
    return Image.fromarray(canvas)


def _round(value: float) -> float:
    """Up to one digit, and above 0."""
    if value <= 0:
        return 1.0
    unit = 10 ** np.floor(np.log10(value))
    return float(np.ceil(value / unit) * unit)

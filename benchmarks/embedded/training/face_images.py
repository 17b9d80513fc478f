"""The faces that the embedded faces are trained on: drawn by DiceBear, rasterised here.

`draw_faces.mjs` draws faces of the style "Pixel Art" by DiceBear (design CC0 1.0) as SVG, with the
options that it chose; this module makes them 16 x 16 pixels and reads the attributes off the
options, which are exact. It needs node and, once, in a folder of your choice,

    npm install --prefix checkpoints/faces @dicebear/core@9 @dicebear/collection@9
    pip install resvg-py

The face of a number is always the same, so ranges of numbers that do not meet are independent.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from logsnr.benchmarks.embedded.face_labels import ATTRIBUTES, join_labels

TRAINING = (0, 100_000)
HELD_OUT = (1_000_000, 50_000)
SHIPPED = (2_000_000, 500)

SCRIPT = Path(__file__).with_name("draw_faces.mjs")
BACKGROUNDS = ("#b6e3f4", "#c0aede", "#d1d4f9", "#ffd5dc", "#ffdfbf")
SKINS = (
    ("#ffdbac", "#f5cfa0"),
    ("#eac393", "#e0b687"),
    ("#cb9e6e", "#b68655"),
    ("#a26d3d", "#8d5524"),
)
CLOTHES = (
    ("#5bc0de", "#428bca", "#03396c"),
    ("#88d8b0", "#44c585", "#00b159"),
    ("#ff6f69", "#d11141", "#ae0001"),
    ("#ffeead", "#ffd969", "#ffc425"),
)


def faces(which: tuple[int, int], work: Path) -> tuple[Tensor, Tensor]:
    """The faces of a range (first, count): uint8 images (count, 3, 16, 16), and labels (count,).

    They are drawn once, and kept in the folder `work`.
    """
    first, count = which
    file = work / f"faces-{first}-{count}.safetensors"
    if not file.exists():
        images, labels = _draw(first, count, work)
        part = file.with_suffix(".part")
        save_file({"images": images, "labels": labels}, part)
        part.replace(file)
    tensors = load_file(file)
    return tensors["images"], tensors["labels"].long()


def _draw(first: int, count: int, work: Path) -> tuple[Tensor, Tensor]:
    import resvg_py

    script = shutil.copy(SCRIPT, work)  # node looks for packages beside the script
    images = np.empty((count, 3, 16, 16), np.uint8)
    places = np.empty((count, len(ATTRIBUTES)), np.int64)
    command = ["node", str(script), str(first), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for index, line in enumerate(process.stdout):
            face = json.loads(line)
            png = bytes(resvg_py.svg_to_bytes(svg_string=face["svg"], skip_system_fonts=True))
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            images[index] = pixels.transpose(2, 0, 1)
            places[index] = _places(face["options"])
    if process.returncode != 0 or index + 1 != count:
        raise RuntimeError(f"{' '.join(command)} drew {index + 1} faces of {count}")
    return torch.from_numpy(images), join_labels(torch.from_numpy(places)).to(torch.int16)


def _places(options: dict[str, Any]) -> list[int]:
    """The attributes of a face, in the order of ATTRIBUTES, each from 1."""

    def group(color: str, groups: tuple[tuple[str, ...], ...]) -> int:
        return 1 + next(i for i, colors in enumerate(groups) if color in colors)

    return [
        1 + BACKGROUNDS.index(options["primaryBackgroundColor"]),
        group(options["skinColor"], SKINS),
        group(options["clothingColor"], CLOTHES),
        2 if options["hair"].startswith("long") else 1,
        2 if "glasses" in options else 1,
        2 if "hat" in options else 1,
    ]

"""What the converged samples of an embedded model are worth, apart from any solver.

    python -m logsnr.benchmarks.embedded.quality faces --samples 2000

prints the Frechet distance of converged samples to the real images beside that of other real
images of the same number, how many samples show what their labels ask for, and how clean the
background of the digits is. `docs/models.md` has the numbers. `--picture FILE` draws the samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from logsnr.benchmarks.embedded.background import background_deviation, by_digit
from logsnr.benchmarks.embedded.face_labels import ATTRIBUTES, split_labels
from logsnr.benchmarks.embedded.models import (
    DIGITS,
    EMBEDDED_MODELS,
    FACES,
    EmbeddedModel,
    embedded_model,
)
from logsnr.benchmarks.metrics.frechet import fid
from logsnr.solvers import make_plan, sample

BATCH = 100


def converged_samples(
    model: EmbeddedModel, count: int, *, nfe: int = 60, seed: int = 0, guidance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Samples (count, *shape) with no noise left, and their labels (count,), `turns` from 0.

    With 60 evaluations of UniPC-3 the solver's error is far below the network's.
    """
    labels = model.turns(torch.arange(count))
    network, schedule = model.load_unet(), model.schedule
    noisy = schedule.sigma(schedule.t_end) > 0
    end: dict[str, Any] = {"spacing": "karras", "denoise_to_zero": True} if noisy else {}
    plan = make_plan("unipc", schedule, nfe=nfe, order=3, **end)
    starts = model.starts(count, seed).split(BATCH)
    return torch.cat(
        [
            sample(model.denoiser(y, guidance=guidance, network=network), x, plan)
            for x, y in zip(starts, labels.split(BATCH), strict=True)
        ]
    ), labels


@torch.no_grad()
def agreement(model: EmbeddedModel, x: Tensor, labels: Tensor) -> dict[str, float]:
    """The share of samples in which the classifier finds what the labels ask for.

    By attribute for faces, else one number.
    """
    classifier = model.load_classifier()
    found = torch.cat([classifier.classify(part) for part in x.clamp(-1, 1).split(500)])
    if model is not FACES:
        return {"label": (found == labels).double().mean().item()}
    right = (split_labels(found) == split_labels(labels)).double()
    return dict(zip(ATTRIBUTES, right.mean(dim=0).tolist(), strict=True)) | {
        "all attributes": right.prod(dim=1).mean().item()
    }


def draw(model: EmbeddedModel, x: Tensor, file: Path, width: int = 896) -> None:
    """Write the samples as rows of a PNG of that width, pixels enlarged by a whole factor."""
    scale = 64 // model.shape[-1]
    images = model.pictures(x).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    columns = width // images.shape[-1]
    images = images[: len(images) // columns * columns].mul(255).round().byte()
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns)]
    pixels = torch.cat(rows, dim=1).expand(3, -1, -1).permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(file)


def main() -> None:
    """Read the command line, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=EMBEDDED_MODELS)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--nfe", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--picture", type=Path, help="write the samples as a PNG")
    args = parser.parse_args()
    model = embedded_model(args.model)
    x, labels = converged_samples(
        model, args.samples, nfe=args.nfe, seed=args.seed, guidance=args.guidance
    )
    if args.picture is not None:
        draw(model, x, args.picture)
    network, reference = model.load_feature_network(), model.load_reference_statistics()
    distance = fid(x, network, reference)
    print(f"{distance.name} of {args.samples} converged samples: {distance.value:.3f}")
    floors = {k: v for k, v in model.statistics_metadata().items() if k.startswith("floor")}
    print("of real images:", dict(sorted(floors.items(), key=lambda item: int(item[0][6:]))))
    print("as asked for:", agreement(model, x, labels))
    if model is DIGITS:
        for digit, parts in by_digit(background_deviation(x, labels), labels).items():
            print(f"background of the {digit}: all {parts[0]:.3f}, median sample {parts[1]:.3f}")


if __name__ == "__main__":
    main()

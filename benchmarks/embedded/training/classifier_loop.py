"""What the recipes of the classifiers share: the training loop, and the files that are written.

For one seed and number of threads the tensors are the same in every run on one machine; the files'
bytes are not, as safetensors orders its metadata at random.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from logsnr.benchmarks.embedded.classifiers import WEIGHTS_FILE, Classifier, FeatureNetwork
from logsnr.benchmarks.embedded.models import FEATURES_FILE, STATISTICS_FILE
from logsnr.benchmarks.metrics.frechet import frechet_distance
from logsnr.benchmarks.metrics.statistics import FeatureStatistics

FLOOR_COUNTS = (64, 128, 256, 512, 1000, 2000, 5000)
FEATURES = 5000


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a half cosine down to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fit(
    net: Classifier,
    indices: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    args: argparse.Namespace,
    rng: torch.Generator,
) -> None:
    """Train with AdamW on batches of the training indices (N,), reshuffled every epoch."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0.05)
    batches = len(indices) // args.batch
    steps, step, began = args.epochs * batches, 0, time.time()
    for epoch in range(args.epochs):
        net.train()
        order = indices[torch.randperm(len(indices), generator=rng)]
        total = 0.0
        for pick in order[: batches * args.batch].split(args.batch):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, args.lr, warmup=min(2 * batches, 200))
            loss = loss_of(pick)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total, step = total + loss.item(), step + 1
        rate = (time.time() - began) / (epoch + 1)
        print(
            f"epoch {epoch + 1}/{args.epochs}  loss {total / batches:.4f}  {rate:.1f} s/epoch",
            flush=True,
        )
    net.eval()


def round_weights(net: Classifier) -> None:
    """Round the weights to the half precision that is written, so that what is measured is kept."""
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().float())


def export_weights(
    net: Classifier, args: argparse.Namespace, accuracy: float, images: dict[str, int]
) -> None:
    """Write the weights in half precision, with what is to be known of them.

    accuracy : on held-out images.  images : how many there were, by what they were for.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    metadata = {
        "held_out_accuracy": f"{accuracy:.4f}",
        **{name: str(count) for name, count in images.items()},
        "epochs": str(args.epochs),
        "batch": str(args.batch),
        "learning_rate": str(args.lr),
        "seed": str(args.seed),
        "threads": str(args.threads),
        "torch": torch.__version__.split("+")[0],
    }
    save_file(state, args.out / WEIGHTS_FILE, metadata=metadata)


def export_reference(net: Classifier, images: Tensor, others: Tensor | None, folder: Path) -> None:
    """Write the statistics of the reference images, features of 5,000 of them, and the floors.

    images: (N, *image_shape) in [-1, 1]. floor_n is the distance of n other real images, drawn at
    random from `others`, or of n of the reference's own: what a perfect sampler scores with n
    samples (a little less where the n are part of the reference). The mean of ten draws.
    """
    network = FeatureNetwork(net.requires_grad_(False))
    features = _features(network, images)
    statistics = FeatureStatistics.of(features, network.metric_name)
    pool = features if others is None else _features(network, others)
    floors = {}
    rng = torch.Generator().manual_seed(0)
    for count in FLOOR_COUNTS:
        if count >= len(pool):
            continue
        draws = [pool[torch.randperm(len(pool), generator=rng)[:count]] for _ in range(10)]
        parts = [FeatureStatistics.of(draw, network.metric_name) for draw in draws]
        values = [frechet_distance(part, statistics).value for part in parts]
        floors[f"floor_{count}"] = f"{sum(values) / len(values):.4f}"
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    metadata = {"weights_sha256": digest, **floors}
    statistics.save(folder / STATISTICS_FILE, metadata=metadata)
    few = features[:FEATURES].half().contiguous()
    save_file({"features": few}, folder / FEATURES_FILE, metadata=metadata)
    print(f"{network.metric_name} of real images: {floors}")


def _features(network: FeatureNetwork, images: Tensor) -> Tensor:
    return torch.cat([network(batch) for batch in images.split(500)])


def options(description: str, out: Path, epochs: int, lr: float) -> argparse.ArgumentParser:
    """The command line of a recipe; the defaults made the committed classifier."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=out)
    return parser

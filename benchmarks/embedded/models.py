"""The embedded models by name, through one interface: network, labels, images, and their metrics.

Loading reads the files of this folder and nothing else: no download, no data set. `docs/models.md`
says what the models are, and `training/` how they were made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMPipeline, UNet2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from logsnr.adapters.config.noise_schedules import noise_schedule
from logsnr.benchmarks.embedded.classifiers import (
    WEIGHTS_FILE,
    Classifier,
    FeatureNetwork,
    load_weights,
    metadata,
)
from logsnr.benchmarks.embedded.conditioning import Labels, add_condition, check_labels
from logsnr.benchmarks.embedded.digit_classifier import DigitClassifier
from logsnr.benchmarks.embedded.face_classifier import FaceClassifier
from logsnr.benchmarks.embedded.face_labels import NUM_LABELS, face_turns
from logsnr.benchmarks.metrics.statistics import FeatureStatistics
from logsnr.solvers import EMS, ClassifierFree, Denoiser, DiscreteVP, NoiseSchedule
from logsnr.solvers.names import nearest

STATISTICS_FILE = "reference_statistics.safetensors"
FEATURES_FILE = "reference_features.safetensors"
IMAGES_FILE = "images.safetensors"


@dataclass(frozen=True)
class EmbeddedModel:
    """A pretrained class-conditional diffusion model and what measures its samples.

    Parameters
    ----------
    name : of the model, and of its folder.
    prediction : what the network predicts, as `Denoiser` names it.
    shape : (channels, height, width) of its images, which lie in [-1, 1].
    labels : the number of labels that the network knows; it takes 0..labels - 1.
    null_label : the one that leaves everything open, for guidance and unconditional samples.
    turns : the labels (B,) of the samples of a measurement with the numbers (B,): by its number
        alone, so that any share of the samples has the labels that it has among all, and in the
        proportions of the data.
    classifier : builds the classifier, of which the features make the Frechet distance.
    """

    name: str
    prediction: str
    shape: tuple[int, int, int]
    labels: int
    null_label: int
    turns: Callable[[Tensor], Tensor]
    classifier: Callable[[], Classifier]

    @property
    def folder(self) -> Path:
        """Everything that is embedded of this model."""
        return Path(__file__).parent / self.name

    @property
    def model_folder(self) -> Path:
        """The folder that `DiffusionPipeline.from_pretrained` takes."""
        return self.folder / "model"

    @property
    def classifier_folder(self) -> Path:
        """The classifier's weights and the reference statistics of its features."""
        return self.folder / "classifier"

    @property
    def ems_file(self) -> Path:
        """The statistics of DPM-Solver-v3, if this model has them."""
        return self.folder / "ems" / "ems.safetensors"

    @property
    def cards_folder(self) -> Path:
        """The cards of plans fitted to this model."""
        return self.folder / "cards"

    @property
    def images_file(self) -> Path:
        """Some real images with their labels, if this model has them."""
        return self.folder / IMAGES_FILE

    # The diffusion model

    def load_unet(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> UNet2DModel:
        """The network in eval mode, without gradients of its parameters.

        `unet(x, t, class_labels=y).sample` is the prediction: x (B, *shape), t a number or (B,) in
        0..1000 as diffusers counts time, y (B,) integers. The disk holds half precision.
        """
        unet = UNet2DModel.from_pretrained(
            self.model_folder,
            subfolder="unet",
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,  # True needs accelerate, and warns without it
        )
        return unet.to(device).eval().requires_grad_(False)

    def load_scheduler(self) -> Any:
        """The diffusers scheduler of the folder; `.config` builds any other one."""
        config = self.load_scheduler_config()
        return getattr(diffusers, config["_class_name"]).from_config(config)

    def load_scheduler_config(self) -> dict[str, Any]:
        """The diffusers config of the noise schedule that the network was trained on."""
        return json.loads((self.model_folder / "scheduler" / "scheduler_config.json").read_text())

    @property
    def schedule(self) -> NoiseSchedule:
        """That noise schedule, from the same table that diffusers uses."""
        scheduler = self.load_scheduler()
        if hasattr(scheduler, "alphas_cumprod"):  # in float32, as pipelines have it
            return DiscreteVP(scheduler.alphas_cumprod)
        return noise_schedule(scheduler.config)

    def denoiser(
        self,
        labels: Labels = None,
        *,
        guidance: float = 1.0,
        network: nn.Module | None = None,
        **options: Any,
    ) -> Denoiser:
        """The (guided) network for samples of these labels; None leaves everything open.

        labels : one number for all samples, or one a sample, (B,).
        guidance : scale of classifier-free guidance; 1 is the plain conditional network.
        network : one that `load_unet` gave, to be used again; None loads it.
        options : further ones of `Denoiser`.

        Raises ValueError for labels that the network does not know.
        """
        given = check_labels(labels, count=self.labels, null=self.null_label)
        condition = {"class_labels": given}
        null = {"class_labels": torch.full_like(given, self.null_label)}
        if self.prediction == "flow_prediction":
            options = {"network_time": lambda t: 1000 * t} | options
        return Denoiser(
            self.load_unet() if network is None else network,
            self.schedule,
            self.prediction,
            guidance=ClassifierFree(guidance, condition, null),
            **options,
        )

    def load_pipeline(
        self,
        labels: Labels = None,
        *,
        guidance_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> DDPMPipeline:
        """A stock DDPMPipeline of the model, conditioned as `condition` says.

        `load_pipeline(labels=3)(batch_size=4, num_inference_steps=50).images` are four pictures.
        The scheduler may be replaced as in any pipeline.
        """
        unet = self.load_unet(dtype, device)
        self.condition(unet, labels, guidance_scale=guidance_scale)
        return DDPMPipeline(unet=unet, scheduler=self.load_scheduler())

    def condition(
        self, unet: nn.Module, labels: Labels = None, *, guidance_scale: float = 1.0
    ) -> None:
        """Hook this model's UNet so that a plain `unet(x, t)` is conditional and guided.

        labels, guidance_scale: as of `denoiser`; the rest is said at `conditioning.add_condition`.
        """
        add_condition(unet, labels, guidance_scale, count=self.labels, null=self.null_label)

    # Samples and their measures

    def starts(self, count: int, seed: int = 0) -> Tensor:
        """Standard normal states (count, *shape)."""
        rng = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.shape, generator=rng)

    def pictures(self, x: Tensor) -> Tensor:
        """Samples (B, *shape) as images in [0, 1], clipped."""
        return (x.clamp(-1, 1) + 1) / 2

    def digest(self) -> str:
        """Twelve hexadecimal digits of the network's weights, for records."""
        weights = self.model_folder / "unet" / "diffusion_pytorch_model.safetensors"
        return hashlib.sha256(weights.read_bytes()).hexdigest()[:12]

    def load_ems(self) -> EMS:
        """The statistics of this network for DPM-Solver-v3, conditional and without guidance."""
        return EMS.load(self.ems_file)

    def load_classifier(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Classifier:
        """The trained classifier in eval mode, without gradients of its parameters."""
        return load_weights(self.classifier(), self.classifier_folder, dtype, device)

    def load_feature_network(self, device: torch.device | str = "cpu") -> FeatureNetwork:
        """The feature network of the trained classifier, in float32."""
        return FeatureNetwork(self.load_classifier(device=device))

    def classifier_metadata(self) -> dict[str, str]:
        """What the recipe recorded of the classifier: accuracy, seed, ..."""
        return metadata(self.classifier_folder / WEIGHTS_FILE)

    def load_reference_statistics(self) -> FeatureStatistics:
        """The feature statistics of the real images, as `load_feature_network` sees them."""
        return FeatureStatistics.load(self.classifier_folder / STATISTICS_FILE)

    def statistics_metadata(self) -> dict[str, str]:
        """What stands beside them: "floor_1000" is the distance of 1,000 real images, ..."""
        return metadata(self.classifier_folder / STATISTICS_FILE)

    def load_reference_features(self) -> Tensor:
        """Features (5000, d), float64, of real images, for metrics that need more than moments.

        The disk holds half precision.
        """
        return load_file(self.classifier_folder / FEATURES_FILE)["features"].double()

    def load_images(self) -> tuple[Tensor, Tensor]:
        """Real images (B, *shape) in [-1, 1] that no network was trained on, and labels (B,)."""
        tensors = load_file(self.images_file)
        return tensors["images"].float() / 127.5 - 1, tensors["labels"].long()


def digit_turns(numbers: Tensor) -> Tensor:
    """The labels (B,) of samples with these numbers: 0..9 in turn."""
    return numbers % 10


DIGITS = EmbeddedModel(
    name="digits",
    prediction="epsilon",
    shape=(1, 28, 28),
    labels=11,
    null_label=10,
    turns=digit_turns,
    classifier=DigitClassifier,
)

FACES = EmbeddedModel(
    name="faces",
    prediction="flow_prediction",
    shape=(3, 16, 16),
    labels=NUM_LABELS,
    null_label=0,
    turns=face_turns,
    classifier=FaceClassifier,
)

EMBEDDED_MODELS = {model.name: model for model in (DIGITS, FACES)}


def embedded_model(name: str) -> EmbeddedModel:
    """The model of that name. Raises ValueError for an unknown one."""
    if name not in EMBEDDED_MODELS:
        near = nearest(name, EMBEDDED_MODELS)
        raise ValueError(
            f"no embedded model is called {name!r}; there are {', '.join(EMBEDDED_MODELS)}"
            + ("" if near is None else f"; did you mean {near!r}?")
        )
    return EMBEDDED_MODELS[name]

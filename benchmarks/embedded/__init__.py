"""A pretrained class-conditional diffusion model of digits and its feature network, both embedded.

Loading reads the files of this folder and nothing else: no download, no data set.
"""

from logsnr.benchmarks.embedded.diffusion_model import (
    MODEL_FOLDER,
    NULL_LABEL,
    condition,
    load_pipeline,
    load_scheduler,
    load_scheduler_config,
    load_unet,
)
from logsnr.benchmarks.embedded.digit_classifier import (
    CLASSIFIER_FOLDER,
    DigitClassifier,
    FeatureNetwork,
    classifier_metadata,
    load_classifier,
    load_feature_network,
    load_reference_statistics,
)
from logsnr.benchmarks.embedded.model_statistics import EMS_FILE, load_ems

__all__ = [
    "CLASSIFIER_FOLDER",
    "EMS_FILE",
    "MODEL_FOLDER",
    "NULL_LABEL",
    "DigitClassifier",
    "FeatureNetwork",
    "classifier_metadata",
    "condition",
    "load_classifier",
    "load_ems",
    "load_feature_network",
    "load_pipeline",
    "load_reference_statistics",
    "load_scheduler",
    "load_scheduler_config",
    "load_unet",
]

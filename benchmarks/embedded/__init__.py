"""Pretrained diffusion models and their feature networks, embedded.

`embedded_model("digits")` is one of them behind the interface of `EmbeddedModel`. The functions of
this module are those of the digits. Loading reads the files of this folder and nothing else: no
download, no data set.
"""

from logsnr.benchmarks.embedded.classifiers import Classifier, FeatureNetwork
from logsnr.benchmarks.embedded.models import (
    DIGITS,
    EMBEDDED_MODELS,
    EmbeddedModel,
    embedded_model,
)

NULL_LABEL = DIGITS.null_label
MODEL_FOLDER = DIGITS.model_folder
CLASSIFIER_FOLDER = DIGITS.classifier_folder
EMS_FILE = DIGITS.ems_file
load_unet = DIGITS.load_unet
load_scheduler = DIGITS.load_scheduler
load_scheduler_config = DIGITS.load_scheduler_config
load_pipeline = DIGITS.load_pipeline
condition = DIGITS.condition
load_ems = DIGITS.load_ems
load_classifier = DIGITS.load_classifier
load_feature_network = DIGITS.load_feature_network
load_reference_statistics = DIGITS.load_reference_statistics
classifier_metadata = DIGITS.classifier_metadata

__all__ = [
    "CLASSIFIER_FOLDER",
    "DIGITS",
    "EMBEDDED_MODELS",
    "EMS_FILE",
    "MODEL_FOLDER",
    "NULL_LABEL",
    "Classifier",
    "EmbeddedModel",
    "FeatureNetwork",
    "classifier_metadata",
    "condition",
    "embedded_model",
    "load_classifier",
    "load_ems",
    "load_feature_network",
    "load_pipeline",
    "load_reference_statistics",
    "load_scheduler",
    "load_scheduler_config",
    "load_unet",
]

"""diffusers' own scheduler classes: which one a config came from, and which cannot be replaced.

A config that was loaded from a file names its class. One that was taken from an instance does not,
but holds every key of the class, which tells most classes apart.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import diffusers

from .known_keys import MODEL_KEYS, defaults, handed_back
from .noisy_classes import STOCK_OF, stock_words
from .store import same

# Classes whose configs say everything about the model, and whose pipelines keep to the common
# protocol: set_timesteps, scale_model_input, step. Of two with the same keys, the first is meant.
REPLACED = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "CosineDPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "UnCLIPScheduler",
)

# By which the multistep classes say what FlowMatchEulerDiscreteScheduler says by its class.
FLOW_KEYS = ("use_flow_sigmas", "flow_shift")

_DISTILLED = "its models are distilled for its own few steps, between which it adds noise"
_CONSISTENCY = "its models map a noisy image to the data at once; there is no ODE to solve"
_TOKENS = "its models predict discrete tokens"
_BACKWARDS = "it runs from data to noise"
_STAGES = "its pipeline runs several stages with schedules of their own"
REFUSED = {
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "FlowMatchLCMScheduler": _DISTILLED,
    "PiflowScheduler": "its models return a policy for a whole step, not a prediction",
    "FlowMapEulerDiscreteScheduler": "its models are told the end of each step too",
    "CMStochasticIterativeScheduler": _CONSISTENCY,
    "ConsistencyDecoderScheduler": _CONSISTENCY,
    "SCMScheduler": _CONSISTENCY,
    "DDPMWuerstchenScheduler": "the pipelines of Stable Cascade and Wuerstchen tell the network a "
    "ratio of noise that this class computes",
    "VQDiffusionScheduler": _TOKENS,
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "RePaintScheduler": "its step takes the image and the mask, and jumps back in time",
    "DDIMInverseScheduler": _BACKWARDS,
    "DPMSolverMultistepInverseScheduler": _BACKWARDS,
    "ScoreSdeVeScheduler": "its pipeline calls a predictor and a corrector by their own names",
    "KarrasVeScheduler": "its pipeline calls its own steps by name",
    "IPNDMScheduler": "its noise schedule is not in its config",
    "HeliosScheduler": _STAGES,
    "HeliosDMDScheduler": _STAGES,
    "LTXEulerAncestralRFScheduler": "its noise schedule is not in its config; take that of the "
    "pipeline's FlowMatchEulerDiscreteScheduler",
    "MiniMaxH3Scheduler": "its times run from 0 (noise) to 1 (data)",
    "RFD4ProteinaScheduler": "its models are told the time of their own schedule",
}


@cache
def init_keys(name: str) -> frozenset[str]:
    """The config keys of a class of diffusers, none if this version lacks it."""
    scheduler = getattr(diffusers, name, None)
    if scheduler is None or not hasattr(scheduler, "config_name"):
        return frozenset()
    return frozenset(inspect.signature(scheduler).parameters) - {"kwargs"}


def class_of(config: Mapping[str, Any]) -> str | None:
    """The class of diffusers that a config came from, or None if it is none or cannot be told."""
    name = config.get("_class_name")
    if isinstance(name, str) and name.startswith("Flax"):
        name = name[len("Flax") :]
    if isinstance(name, str) and (name in REFUSED or hasattr(diffusers, name)):
        return name
    given = {key for key in config if not key.startswith("_")}
    names = [name for name in (*REPLACED, *REFUSED) if init_keys(name)]
    for name in names:
        if init_keys(name) == given:
            return name
    # A scheduler that was converted before keeps the keys of the former one beside its own.
    contained = [name for name in REPLACED if init_keys(name) and init_keys(name) <= given]
    return max(contained, key=lambda name: len(init_keys(name)), default=None)


def class_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The defaults of `class_of` a config, none where it cannot be told."""
    kind = getattr(diffusers, class_of(config) or "", None)
    return {} if kind is None else defaults(kind)


def replaceable_class(config: Mapping[str, Any]) -> str | None:
    """`class_of`, or ValueError for a class in whose pipelines no solver of ours can run."""
    name = class_of(config)
    if name is not None and name not in REPLACED:
        why = REFUSED.get(name, "it has a protocol of its own")
        raise ValueError(
            f"_class_name={name!r}: PlanScheduler cannot take the place of this scheduler: {why}"
        )
    return name


def swappable(scheduler: Any, own: Mapping[str, Any]) -> list[type]:
    """The classes of diffusers that can take the place of ``scheduler`` and give it back.

    They read every key of its config that makes another model than its default in ``own`` would,
    their ``from_config`` takes the config, and from theirs it is made again with every key.
    """
    config = scheduler.config
    said = {key for key in (*MODEL_KEYS, *FLOW_KEYS) if not same(config[key], own[key])}
    found = []
    with _quietly():
        for name in REPLACED:
            if said <= init_keys(name) and _there_and_back(scheduler, name):
                found.append(getattr(diffusers, name))
    return found


def _there_and_back(scheduler: Any, name: str) -> bool:
    try:
        other = getattr(diffusers, name).from_config(scheduler.config)
        again = type(scheduler).from_config(other.config)
    except (ValueError, TypeError, NotImplementedError, ImportError):
        return False  # what classes of diffusers raise for a key that they do not take
    return bool(again.config == scheduler.config)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings that a class of diffusers lacks keys of this package."""
    logger = logging.getLogger("diffusers.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def stock_scheduler(config: Mapping[str, Any], own: Mapping[str, Any], solver: str) -> Any:
    """A scheduler of the class that our ``config`` came from, or of the nearest, with its keys.

    ``own`` are our keys with their defaults. Keys that the class lacks are kept, unread.
    """
    name = config["stock_class"] or default_class(config, solver)
    given, kept = handed_back(config, own, init_keys(name))
    options = config["solver"] if isinstance(config["solver"], Mapping) else {}
    words = stock_words(name, solver, options)
    given |= {key: value for key, value in words.items() if key in init_keys(name)}
    scheduler = getattr(diffusers, name).from_config({**given, "_class_name": name})
    scheduler.register_to_config(**kept, _class_name=name)
    return scheduler


def default_class(config: Mapping[str, Any], solver: str) -> str:
    """The class of diffusers that comes nearest to a config without a known origin."""
    if config.get("sigma_data") is not None:
        return (
            "EDMEulerScheduler" if solver in ("ddim", "euler") else "EDMDPMSolverMultistepScheduler"
        )
    if config.get("shift") is not None:
        return "FlowMatchEulerDiscreteScheduler"
    singlestep = isinstance(config["solver"], Mapping) and "singlestep" in str(
        config["solver"].get("steps")
    )
    multistep = "DPMSolverSinglestepScheduler" if singlestep else "DPMSolverMultistepScheduler"
    return {
        **STOCK_OF,
        "ddim": "DDIMScheduler",
        "euler": "EulerDiscreteScheduler",
        "heun": "HeunDiscreteScheduler",
        "dpm2": "KDPM2DiscreteScheduler",
        "lms": "LMSDiscreteScheduler",
        "deis": "DEISMultistepScheduler",
        "unipc": "UniPCMultistepScheduler",
    }.get(solver, multistep)

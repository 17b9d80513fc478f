"""The contenders of a comparison, by their names on the command line and in suites.

    PlanScheduler                        ours with nothing said: the line that people paste
    unipc, dpm-solver++:order=3          a solver of the registry
    stock                                a pipeline's own scheduler
    UniPCMultistep                       UniPCMultistepScheduler of diffusers, or another one, made
                                         from the model's config
    sample_dpmpp_2m, my.module.sampler   a sampler function with the interface of k-diffusion
    plans/tuned.safetensors              a saved plan
    card:cards/mine                      a folder of cards, by the number of evaluations; card:faces
                                         are those of an embedded model

Options follow as ``:key=value``, those of the solver or keys of the scheduler's config, or as one
of the words in `WORDS`: ``unipc:order=3:karras`` is ``unipc:order=3:use_karras_sigmas=true``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers

from logsnr.adapters import PlanScheduler
from logsnr.benchmarks.embedded import EMBEDDED_MODELS
from logsnr.benchmarks.harness.protocol import digest
from logsnr.benchmarks.harness.written import importable, option_value, split, unquoted
from logsnr.solvers import SOLVERS, Cards, Plan
from logsnr.solvers.names import in_words
from logsnr.solvers.provenance import file_digest
from logsnr.solvers.registry import implied
from logsnr.solvers.tuning.cards import card_files

STOCK = "stock"
PASTED = "PlanScheduler"
SUFFIX = "Scheduler"
PLAN = ".safetensors"
CARD = "card:"
FUNCTION = "sample_"
K_DIFFUSION = "k_diffusion.sampling"
"""Where a function is looked for whose name has no module."""
WORDS: dict[str, tuple[str, Any]] = {
    "karras": ("use_karras_sigmas", True),
    "exponential": ("use_exponential_sigmas", True),
    "beta": ("use_beta_sigmas", True),
    "leading": ("timestep_spacing", "leading"),
    "trailing": ("timestep_spacing", "trailing"),
    "linspace": ("timestep_spacing", "linspace"),
}
"""Short for an option of the scheduler's config."""
REFERENCE_CONFIG: dict[str, Any] = {
    "solver_order": 3,
    "final_sigmas_type": "zero",
    "timestep_spacing": "linspace",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
}
"""Of the converged solution: whole training steps from the first to the last, then sigma = 0."""


@dataclass(frozen=True, eq=False)
class Contender:
    """One method of the comparison.

    name : a solver, ``"stock"``, ``"PlanScheduler"``, a class of diffusers, the dotted name of a
        sampler function, the file of a plan, or ``"card:"`` and a folder of cards.
    options : its own.
    label : what it is called in records, where that is not its name.
    title : what it is called in tables, where that is not its ``text``.
    """

    name: str
    options: Mapping[str, Any]
    label: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        if self.saved and self.options:
            raise ValueError(f"{self.text}: a saved plan has no options, its numbers are all of it")

    @property
    def solver(self) -> str:
        """What a record calls it."""
        return self.label or self.name

    @property
    def heading(self) -> str:
        """What a table calls it."""
        return self.title or self.text

    @property
    def text(self) -> str:
        """Its label, or the shortest way to write it on the command line."""
        if self.label:
            return self.label
        words = {f"{key}={json.dumps(value)}": word for word, (key, value) in WORDS.items()}
        said = (f"{key}={json.dumps(value)}" for key, value in self.options.items())
        options = (words.get(option, option) for option in said)
        name = self.name if self.ours else self.name.removesuffix(SUFFIX)
        return ":".join([name, *options]).replace('"', "")

    @property
    def ours(self) -> bool:
        """Whether it is of this project."""
        return self.name == PASTED or self.name in SOLVERS or self.saved

    @property
    def stock(self) -> bool:
        """Whether it is one of diffusers' schedulers."""
        return self.name == STOCK or (self.name != PASTED and self.name.endswith(SUFFIX))

    @property
    def saved(self) -> bool:
        """Whether it is the file of a plan, or a folder of cards."""
        return self.name.endswith(PLAN) or self.name.startswith(CARD)

    @property
    def sampler(self) -> bool:
        """Whether it is a sampler function."""
        return not (self.ours or self.stock)

    @property
    def described(self) -> dict[str, Any]:
        """The options as a record has them: with the hash of what a file holds."""
        options = dict(self.options)
        if self.name.startswith(CARD):
            files = card_files(Path(self.name.removeprefix(CARD)))
            return options | {"cards": digest(sorted(map(file_digest, files)), 12)}
        return options | {"plan": file_digest(Path(self.name))} if self.saved else options

    @property
    def kind(self) -> Any:
        """The class of the scheduler."""
        return PlanScheduler if self.ours else getattr(diffusers, self.name)

    @cached_property
    def plans(self) -> Mapping[int, Plan]:
        """The saved plans by their numbers of evaluations."""
        if self.name.startswith(CARD):
            cards = Cards.load(self.name.removeprefix(CARD))
            return {nfe: card.plan for nfe, card in cards.items()}
        plan = Plan.load(self.name)
        return {plan.nfe: plan}

    @property
    def counts(self) -> str:
        """The numbers of evaluations that saved plans have, in words."""
        return ", ".join(map(str, self.plans))

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The sampler function; ValueError where it cannot be imported."""
        return _function(self.name)

    def scheduler(self, own: Any) -> Any:
        """A new scheduler for a pipeline whose own scheduler is ``own``.

        Raises ValueError for an option that it does not have.
        """
        if self.name == PASTED:
            return PlanScheduler.from_config(own.config, **self.options)
        if self.sampler:
            raise ValueError("a pipeline takes schedulers, and a network takes this one too")
        if self.saved:
            path = self.name.removeprefix(CARD)
            return PlanScheduler.from_config(own.config, plan=path)
        if self.ours:
            has = SOLVERS[self.name].defaults
            solver = {key: value for key, value in self.options.items() if key in has}
            config = {key: value for key, value in self.options.items() if key not in has}
            mapping = {"name": self.name, **solver}
            return PlanScheduler.from_config(own.config, solver=mapping, **config)
        kind = type(own) if self.name == STOCK else self.kind
        known = inspect.signature(kind).parameters
        for key, value in self.options.items():
            if key not in known:
                raise ValueError(f"{key}={value!r} is not an option of {kind.__name__}")
        return kind.from_config(own.config, **self.options)


def reference_scheduler(own: Any) -> Any:
    """The scheduler of the converged solution: UniPC of order 3 on whole training steps."""
    return PlanScheduler.from_config(own.config, solver="unipc", **REFERENCE_CONFIG)


def parse_contender(text: str, argument: str = "solvers", base: Path | None = None) -> Contender:
    """The contender that is written ``name:key=value:word``.

    base : the folder in which files of plans and modules are looked for, the current one if None.

    Raises ValueError for an unknown name; it begins with ``argument``.
    """
    with in_words({"solvers": argument}):
        return _parsed(text, base or Path())


def _parsed(text: str, base: Path) -> Contender:
    whole = text.endswith(PLAN) or text.startswith(CARD)
    typed, *parts = [text] if whole else split(text.strip(), ":")
    typed = unquoted(typed)
    name, options = _named(typed, base)
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals and part not in WORDS:
            raise ValueError(
                f"solvers={text!r}: need options as key=value or one of {', '.join(WORDS)}, "
                f"not {part!r}"
            )
        if equals:
            options[key] = option_value(value)
        else:
            options.update([WORDS[part]])
    try:
        contender = Contender(name, options, label=typed if whole else "")
        if contender.saved:
            contender.plans  # noqa: B018 (which are read, and checked)
    except ValueError as error:
        raise ValueError(f"solvers={text!r}: {error}") from error
    return contender


def _named(typed: str, base: Path) -> tuple[str, dict[str, Any]]:
    """The contender's name and the options that it implies."""
    theirs = typed.removesuffix(SUFFIX) + SUFFIX
    if typed in (STOCK, PASTED):
        return typed, {}
    if typed.endswith(PLAN):
        if not (base / typed).is_file():
            raise ValueError(f"solvers={typed!r}: no such file of a plan")
        return str(base / typed), {}
    if typed.startswith(CARD):
        place = typed.removeprefix(CARD)
        model = EMBEDDED_MODELS.get(place)
        return f"{CARD}{base / place if model is None else model.cards_folder}", {}
    if typed.startswith(FUNCTION) or (typed not in SOLVERS and "." in typed):
        name = typed if "." in typed else f"{K_DIFFUSION}.{typed}"
        importable(Path(), base)
        _function(name)
        return name, {}
    if typed not in SOLVERS and getattr(diffusers, theirs, None) is not None:
        return theirs, {}
    try:
        return implied(typed)
    except ValueError as error:
        said = str(error).replace("solver=", "solvers=", 1).replace(" one of", " some of", 1)
        raise ValueError(
            f"{said}; '{STOCK}' is the pipeline's own scheduler, '{PASTED}' ours with nothing "
            "said; those of diffusers go by their names, such as UniPCMultistep"
        ) from error


def default_contenders(own: Any) -> tuple[Contender, ...]:
    """The pipeline's own scheduler and some of ours; for models of training steps on two grids,
    with the usual scheduler of diffusers beside them.
    """
    names = [STOCK, "ddim", "dpm-solver++", PASTED]
    if hasattr(own, "alphas_cumprod"):
        names += ["dpm-solver++:karras", "unipc:karras"]
        names[1:1] = ["DPMSolverMultistep", "DPMSolverMultistep:karras"]
    else:
        names.append("unipc:order=3")
    return tuple(map(parse_contender, names))


def steps_for(scheduler: Any, nfe: int) -> int:
    """``num_inference_steps`` that makes a pipeline call its network at most ``nfe`` times.

    Schedulers of diffusers with several evaluations a step list every one of them in
    ``timesteps``; for the others, and for ours, this is ``nfe``. Raises ValueError if there is no
    such number, and whatever the scheduler says to numbers that it does not take.
    """
    for steps in range(nfe, 0, -1):
        dynamic = scheduler.config.get("use_dynamic_shifting")
        scheduler.set_timesteps(steps, **({"mu": 1.0} if dynamic else {}))
        if len(scheduler.timesteps) <= nfe:
            return steps
    raise ValueError(f"nfe={nfe}: {type(scheduler).__name__} needs more evaluations")


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.rpartition(".")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"solvers={name!r} cannot be imported: {error}") from error
    if "sigmas" not in inspect.signature(found).parameters:
        raise ValueError(f"solvers={name!r}: need a function (model, x, sigmas, ..)")
    return found

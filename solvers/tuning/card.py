r"""Cards: a fitted plan with what it was fitted to, how, and what that gained.

A card is two files, ``card-5.json`` (everything that can be read, with a digest of the other) and
``card-5.safetensors`` (the plan, as `Plan.save` writes it). It holds no time of day and no seconds:
the same fit gives the same card, bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..fitted_to import FittedTo, fitted_to, noted
from ..node import Node
from ..plan import Plan
from ..provenance import file_digest, releases
from ..whole_files import write_whole

FORMAT = "logsnr-card-1"
PACKAGES = ("logsnr", "torch")
DIGITS = 16
UNTUNED = "untuned"
NODES_ONLY = (UNTUNED, "grid", "auto")
"""Levels whose nodes alone say how to sample: the coefficients are those of a known solver."""


@dataclass(frozen=True)
class Card:
    """A plan, the model it was fitted to, and the record of the fit.

    Parameters
    ----------
    plan : what is run.
    level : "grid", "coefficients", "full", "auto", or "untuned" where nothing that was fitted was
        better than the best known plan beyond doubt, which then is the plan.
    model : what it was fitted to; noted in the plan, too. By default what its note says.
    before, after : errors of the best known plan and of this one over the same validation starts,
        as JSON values ("median", "rmse", ...).
    comparison : of the two, with its confidence.
    fit : how it was fitted: options, starts, seeds; JSON values.
    versions : of the packages that computed it.

    Raises ValueError for what is no plan, or no JSON.
    """

    plan: Plan
    level: str
    model: FittedTo = FittedTo()
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    comparison: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: releases(PACKAGES))

    def __post_init__(self) -> None:
        if not isinstance(self.plan, Plan):
            raise ValueError(f"plan={self.plan!r}: need a Plan")
        if self.model == FittedTo():
            object.__setattr__(self, "model", fitted_to(self.plan) or self.model)
        object.__setattr__(self, "plan", noted(self.plan, self.model))
        if not self.level:
            raise ValueError(f"level={self.level!r}: need the name of one")
        try:
            json.dumps(self.about(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"card: {error}; need JSON values and finite numbers") from error

    def __repr__(self) -> str:
        return f"<Card {self.level}: {self.plan!r}, {self.gain}>"

    @property
    def nfe(self) -> int:
        """Network evaluations of a run."""
        return self.plan.nfe

    @property
    def gain(self) -> str:
        """The error after over the error before, in words."""
        before, after = self.before.get("median"), self.after.get("median")
        if not before or after is None:
            return "errors unknown"
        return f"median error {after:.3g}, untuned {before:.3g}"

    # for other programs

    def sigmas(self) -> list[float]:
        """The noise levels of all nodes, the end included, as other programs count them.

        sigma of flow models, sigma / alpha of the others: what ``set_timesteps(sigmas=...)`` of
        diffusers and ComfyUI's samplers take. Of cards that fitted the nodes alone (`NODES_ONLY`):
        the others say more than nodes can. ValueError otherwise.
        """
        return [_level(node) for node in self._nodes("sigmas")]

    def timesteps(self) -> list[float]:
        """What the network is told at each evaluation, as diffusers counts: 0 .. N - 1, or N t."""
        nodes, steps = self._nodes("timesteps")[:-1], self.model.training_steps
        flow = all(_straight(node) for node in nodes)
        return [steps * float(node.t) - (0 if flow else 1) for node in nodes]

    @property
    def listed(self) -> bool:
        """Whether `sigmas` and `timesteps` say all of it."""
        return not self._unlisted

    @property
    def _unlisted(self) -> str:
        """Why no list of nodes can say what the card does; "" if one can."""
        if self.level not in NODES_ONLY:
            return (
                f"the card's level={self.level!r} fits more than nodes, which no list of them can "
                f"say; need a card of level {', '.join(NODES_ONLY)}"
            )
        times = self.plan.times
        if any(a <= b for a, b in zip(times, times[1:], strict=False)):
            return f"{self.plan!r} evaluates several times a step"
        return ""

    def _nodes(self, asked: str) -> list[Node]:
        if reason := self._unlisted:
            raise ValueError(f"{asked}: {reason}")
        rows = self.plan.rows
        return [*(rows[k].node for k in self.plan.evaluated), rows[-1].node]

    # files

    def about(self) -> dict[str, Any]:
        """All but the plan, as JSON values."""
        return {
            "format": FORMAT,
            "nfe": self.plan.nfe,
            "level": self.level,
            "model": self.model.to_json(),
            "before": dict(self.before),
            "after": dict(self.after),
            "comparison": dict(self.comparison),
            "fit": dict(self.fit),
            "versions": dict(self.versions),
        }

    @classmethod
    def of(cls, about: Mapping[str, Any], plan: Plan) -> Card:
        """The card of what `about` gave. ValueError for anything else."""
        if about.get("format") != FORMAT:
            raise ValueError(f"format={about.get('format')!r}: need {FORMAT!r}")
        if about.get("nfe") != plan.nfe:
            raise ValueError(f"nfe={about.get('nfe')!r}, but its plan has {plan.nfe} evaluations")
        try:
            model = FittedTo.from_json(about["model"])
            parts = ("before", "after", "comparison", "fit", "versions")
            return cls(plan, about["level"], model, **{key: about[key] for key in parts})
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks {error}") from error

    def save(self, path: str | Path) -> None:
        """Write ``card-N.json`` and ``card-N.safetensors`` into a folder, or beside a .json path.

        Each file is whole or not there, and the first names the contents of the second.
        """
        text = card_file(path, self.nfe)
        numbers = text.with_suffix(".safetensors")
        write_whole(numbers, self.plan.save)
        about = {**self.about(), "plan": numbers.name, "digest": file_digest(numbers, DIGITS)}
        written = json.dumps(about, indent=2, allow_nan=False) + "\n"
        write_whole(text, lambda part: part.write_text(written, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Card:
        """Read the card of a .json path.

        ValueError for a file that is missing, damaged, no card, or beside another plan.
        """
        text = Path(path)
        try:
            about = json.loads(text.read_text(encoding="utf-8"))
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise ValueError(f"it is no card ({FORMAT})")
            numbers = text.with_name(Path(str(about.get("plan"))).name)
            if not numbers.is_file():
                raise ValueError(f"{numbers.name} is missing beside it")
            if file_digest(numbers, DIGITS) != about.get("digest"):
                raise ValueError(f"{numbers.name} is damaged, or of another card")
            return cls.of(about, Plan.load(numbers))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"card={str(text)!r} cannot be read: {reason}") from error


def card_file(path: str | Path, nfe: int) -> Path:
    """The .json file of a card of so many evaluations, in a folder or as it is named."""
    place = Path(path)
    return place if place.suffix == ".json" else place / f"card-{nfe}.json"


def _straight(node: Node) -> bool:
    """Whether a node is on the straight path of flow matching, alpha = 1 - sigma."""
    return abs(float(node.alpha) + float(node.sigma) - 1) < 1e-9


def _level(node: Node) -> float:
    alpha, sigma = float(node.alpha), float(node.sigma)
    if _straight(node):
        return sigma
    return sigma / alpha if alpha > 0 else math.inf

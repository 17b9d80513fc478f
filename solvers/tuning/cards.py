"""Several cards of one model, picked by the number of evaluations: a folder, or one file.

    cards = Cards.load("cards/")        # card-5.json, card-8.json, .. with their plans
    cards[8].plan

As one file they go with a saved scheduler (`Cards.save`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..fitted_to import FittedTo
from ..plan import Plan
from ..plan_files import arguments, content
from ..whole_files import write_whole
from .card import Card

BUNDLE = "logsnr-cards-1"


class Cards(Mapping[int, Card]):
    """Cards by their numbers of evaluations, rising; at least one, all of one model.

    Raises ValueError for two cards of one number, and for cards of different models.
    """

    def __init__(self, cards: Iterable[Card]):
        found: dict[int, Card] = {}
        for card in sorted(cards, key=lambda card: card.nfe):
            if card.nfe in found:
                raise ValueError(f"cards: two have nfe={card.nfe}, need one of each")
            found[card.nfe] = card
        if not found:
            raise ValueError("cards: need at least one")
        self._cards = found
        for card in found.values():
            for name in ("weights", "schedule", "prediction", "event"):
                here, first = getattr(card.model, name), getattr(self.model, name)
                if here != first:
                    raise ValueError(
                        f"cards: those of nfe={next(iter(found))} and nfe={card.nfe} are of "
                        f"different models, {name}={first!r} and {here!r}"
                    )

    def __getitem__(self, nfe: int) -> Card:
        return self._cards[nfe]

    def __iter__(self) -> Iterator[int]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)

    def __repr__(self) -> str:
        return f"<Cards of {self.model.name or 'a model'}: {', '.join(map(str, self))} NFE>"

    def __deepcopy__(self, memo: Any) -> Cards:
        return self  # nothing in it changes

    @property
    def model(self) -> FittedTo:
        """What the first was fitted to; the others differ in their guidance at most."""
        return next(iter(self._cards.values())).model

    def save(self, path: str | Path) -> None:
        """Write all of them as one safetensors file."""
        bodies: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for nfe, card in self.items():
            plan, numbers = content(card.plan)
            bodies.append({"about": card.about(), "plan": plan})
            tensors |= {f"{nfe}/{name}": tensor for name, tensor in numbers.items()}
        text = json.dumps({"format": BUNDLE, "cards": bodies}, allow_nan=False)
        write_whole(Path(path), lambda part: save_file(tensors, part, metadata={"cards": text}))

    def save_folder(self, folder: str | Path) -> None:
        """Write each of them into the folder, see `Card.save`."""
        for card in self.values():
            card.save(folder)

    @classmethod
    def load(cls, path: str | Path) -> Cards:
        """Read a folder of cards, the .json file of one, or what `save` wrote.

        ValueError for anything else, and for files that are damaged.
        """
        place = Path(path)
        if place.is_dir() or not place.exists():
            return load_folder(place)
        if place.suffix == ".json":
            return cls([Card.load(place)])
        found = _bundle(place)
        if found is None:
            raise ValueError(f"cards={str(place)!r}: need a folder of cards, or a file of them")
        return found


def load_folder(folder: str | Path) -> Cards:
    """The cards in a folder; other files in it are none of ours.

    ValueError for a folder that is missing or has no card, and for one that is damaged.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"cards={str(place)!r}: no such folder")
    files = card_files(place)
    if not files:
        raise ValueError(
            f"cards={str(place)!r}: no card in it; need card-N.json beside card-N.safetensors, as "
            "Card.save and logsnr tune write them"
        )
    try:
        return Cards(map(Card.load, files))
    except ValueError as error:
        raise ValueError(f"cards={str(place)!r}: {error}") from error


def card_files(folder: Path) -> list[Path]:
    """The .json files of the cards in a folder."""
    return sorted(folder.glob("card-*.json"))


def load_any(path: Path) -> Plan | Cards:
    """The plan, or the cards, that a file or a folder holds. ValueError for anything else."""
    if path.is_dir() or path.suffix == ".json":
        return Cards.load(path)
    found = _bundle(path)
    return Plan.load(path) if found is None else found


def _bundle(path: Path) -> Cards | None:
    """The cards in one file; None for a file of something else."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("cards")
            if text is None:
                return None
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError):
        return None  # `Plan.load` says what is wrong with it
    try:
        written = json.loads(text)
        if written.get("format") != BUNDLE:
            raise ValueError(f"format={written.get('format')!r}: need {BUNDLE!r}")
        return Cards(_unpacked(entry, tensors) for entry in written["cards"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"cards={str(path)!r} cannot be read: {error}") from error


def _unpacked(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Card:
    prefix = f"{entry['about']['nfe']}/"
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    return Card.of(entry["about"], Plan(*arguments(entry["plan"], own)))

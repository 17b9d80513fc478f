"""Statistics, plans and cards in a scheduler's config, and in the folder it is saved in.

A config is JSON, and diffusers hands it from one scheduler to the next. So what a config has is the
name of a file, and in memory that name carries what the file holds (`CarriedFile`): it goes
wherever the config goes, and is written beside it when it is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from logsnr.solvers import EMS, Plan
from logsnr.solvers.tuning.card import Card
from logsnr.solvers.tuning.cards import Cards, load_any


@dataclass(frozen=True)
class Kind:
    """What a key of the config carries.

    types : what it may hold.  load : reads its file.  file : the name of that beside a config.
    called, writer : how errors call such a thing, and what writes files of it.
    """

    types: tuple[type, ...]
    load: Callable[[Path], Any]
    file: str
    called: str
    writer: str


# safetensors under another suffix: a folder with a *.safetensors file is one of weights to
# diffusers, which downloads no other file of it but its config.json.
CARRIED = {
    "ems": Kind((EMS,), EMS.load, "ems.sft", "an EMS", "EMS.save"),
    "plan": Kind(
        (Plan, Cards), load_any, "plan.sft", "a Plan, a Card, Cards", "Plan.save or Card.save"
    ),
}
_DOWNLOAD = (
    "cache_dir",
    "force_download",
    "local_dir",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
)


class CarriedFile(str):
    """The name of the file beside a saved config that holds ``value``."""

    value: Any

    def __new__(cls, name: str, value: Any) -> CarriedFile:
        file = super().__new__(cls, name)
        file.value = value
        return file

    def __getnewargs__(self) -> tuple[str, Any]:  # type: ignore[override]  # str has (str,)
        return str(self), self.value

    def __deepcopy__(self, memo: Any) -> CarriedFile:
        # Nothing in it changes, it may be large, and plans are kept by its identity.
        return self


def carried(key: str, value: Any) -> Any:
    """``value`` of a key as a config has it: what is carried, or a path to it, as a `CarriedFile`.

    A path to nothing stays what it is: only the solver that needs it minds, see `carried_by`.
    """
    kind = CARRIED[key]
    if isinstance(value, Card):
        value = Cards([value])
    if isinstance(value, kind.types):
        return CarriedFile(kind.file, value)
    if isinstance(value, str | Path) and not isinstance(value, CarriedFile):
        path = Path(value)
        inside = path / kind.file  # a folder that a scheduler was saved in
        path = inside if inside.is_file() else path
        return CarriedFile(kind.file, kind.load(path)) if path.exists() else str(value)
    return value


def carried_by(config: Mapping[str, Any], key: str) -> Any:
    """What ``key`` of a config carries; ValueError if it names what is not there."""
    value, kind = config.get(key), CARRIED[key]
    if value is None or isinstance(value, CarriedFile):
        return None if value is None else value.value
    if isinstance(value, str):
        raise ValueError(
            f"{key}={value!r} does not exist: need a file that {kind.writer} wrote, or its folder"
        )
    raise ValueError(
        f"{key}={value!r}: need {kind.called}, the path of its file or folder, or None"
    )


def write_beside(config: Mapping[str, Any], folder: Any) -> None:
    """Write what a config carries into the folder that it is saved in."""
    for key in CARRIED:
        value = config.get(key)
        if isinstance(value, CarriedFile):
            Path(folder).mkdir(parents=True, exist_ok=True)
            value.value.save(Path(folder) / value)


def read_beside(
    config: Mapping[str, Any], key: str, source: Any, options: Mapping[str, Any]
) -> Any:
    """``key`` of a config that was read from ``source``, with the file that it names.

    Parameters
    ----------
    source : what diffusers read the config from: its file, a folder, or a repository of the Hub.
    options : of ``from_pretrained``: subfolder, revision, cache_dir and so on.
    """
    name = config.get(key)
    if not isinstance(name, str):
        return name
    if Path(source).exists():
        root = Path(source).parent if Path(source).is_file() else Path(source)
        places = [root / (options.get("subfolder") or ""), root]
        path = next((place / name for place in places if (place / name).is_file()), None)
        return name if path is None else carried(key, path)
    known = {key: options[key] for key in _DOWNLOAD if key in options}
    try:
        return carried(key, hf_hub_download(str(source), filename=name, **known))
    except EntryNotFoundError:
        return name

"""Files beside the records: whole or not there, and a folder that belongs to one run at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from logsnr.benchmarks.harness.protocol import differences, finite
from logsnr.solvers.whole_files import PART, write_whole

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

LOCK = ".logsnr.lock"


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None
) -> None:
    """Write a safetensors file whole; ``about`` (JSON values) goes with it."""
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps(finite(about or {}))
    metadata = {"about": text, "digest": _digest(kept, text)}

    def write(part: Path) -> None:
        try:
            save_file(kept, part, metadata=metadata)
        except SafetensorError as error:  # it says so of a full disk, too
            raise OSError(f"{path} cannot be written: {error}") from error

    write_whole(path, write)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, about) of such a file; ValueError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if metadata.get("digest") not in (None, _digest(tensors, metadata["about"])):
            raise ValueError("its contents are not those that were written")
        return tensors, dict(json.loads(metadata["about"]))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, to have it made anew") from error


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    """Of all that a file holds: the format itself notices no changed value."""
    sums = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        sums.update(f"{name} {tuple(tensors[name].shape)}".encode())
        sums.update(tensors[name].detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()[:16]


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors of such a file, whose contents are not read; ValueError if it is
    damaged in a way that shows so.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, to have it made anew") from error


def load_tensor(path: Path, name: str = "x") -> Tensor:
    """One tensor of such a file; ValueError if it is damaged."""
    tensors, _ = load_tensors(path)
    if name not in tensors:
        raise ValueError(f"{path} is damaged (no {name!r}): remove it, to have it made anew")
    return tensors[name]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder belongs to this run while inside; a kill gives it back.

    What a killed run left half written is removed. Raises ValueError if another run has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"out={str(folder)!r}: another run is writing there; wait for it, or take "
                    "another folder"
                ) from error
        for part in (*folder.glob(f"{PART}*"), *folder.glob(f"*/{PART}*")):
            part.unlink()
        for part in folder.glob(f"shards/*/{PART}*"):
            part.unlink()
        yield


def claim(
    folder: Path,
    asked: Mapping[str, Any],
    name: str = "suite.json",
    held: bool = True,
    what: str = "measurements of another suite",
) -> None:
    """Note in the folder what is measured there, or check that it is what was noted.

    held : whether anything was measured there; if not, what was noted may change.
    what : is in the folder where it is not that.

    Raises ValueError with the differences if the folder holds measurements of something else;
    nothing in it is touched then.
    """
    path = folder / name
    if not (held and path.exists()):
        text = json.dumps(finite(asked), indent=2) + "\n"
        write_whole(path, lambda part: part.write_text(text))
        return
    try:
        noted = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, to have it made anew") from error
    changed = differences(noted, finite(asked))
    if changed:
        raise ValueError(
            f"out={str(folder)!r} holds {what} (there | now): {'; '.join(changed)}. Take another "
            "folder, or ask for what it was"
        )

"""Parts of a long computation, each kept in a file as soon as it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """A result with its cost: calls of the network, seconds."""

    x: Tensor
    calls: int
    seconds: float


def kept_part(
    file: Path, compute: Callable[[], Tensor], network: nn.Module, watch: Callable[[], None]
) -> Part:
    """The part that ``file`` holds, or that ``compute`` gives and ``file`` then holds.

    ``watch`` is called after each call of the network.
    """
    if file.exists():
        with safe_open(file, framework="pt") as kept:
            about = kept.metadata()
            return Part(kept.get_tensor("x"), int(about["calls"]), float(about["seconds"]))
    began = time.perf_counter()
    with counted(network, watch) as calls:
        x = compute()
    part = Part(x, calls[0], time.perf_counter() - began)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(".part")
    about = {"calls": str(part.calls), "seconds": repr(part.seconds)}
    save_file({"x": x.contiguous()}, written, metadata=about)
    written.replace(file)  # so that a file that is there is whole
    return part


def forget(folder: Path) -> None:
    """Remove the files of ``folder``, whose parts are kept elsewhere by now, and the folder."""
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()


@contextmanager
def counted(network: nn.Module, watch: Callable[[], None]) -> Iterator[list[int]]:
    """Counts the calls of ``network`` inside, in the one entry of the list."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1
        watch()

    hook = network.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        hook.remove()

"""The progress bar of long runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = bool | Callable[[int, int], None]
"""Whether to show a bar, or what to call with the number of units done and their total."""


@contextmanager
def progress_bar(total: int, show: Show, *, unit: str) -> Iterator[Callable[[int], None]]:
    """A function that moves a bar of ``total`` to a number of units done; nothing if not shown."""
    if callable(show):
        yield lambda done: show(done, total)
        return
    if not show:
        yield lambda done: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit=unit) as bar:

        def move(done: int) -> None:
            bar.update(done - bar.n)

        yield move

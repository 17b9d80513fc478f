"""Fixed masks of caches: which evaluations of a run are real, see `Plan.cached`."""

from __future__ import annotations

from .checks import check_whole

Mask = tuple[bool, ...]


def uniform_mask(evaluations: int, nfe: int) -> Mask:
    """``nfe`` real evaluations of ``evaluations``, spread evenly; the first is real.

    Raises ValueError unless 1 <= nfe <= evaluations.
    """
    check_whole("evaluations", evaluations, 1)
    check_whole("nfe", nfe, 1)
    if nfe > evaluations:
        raise ValueError(f"nfe={nfe}: a run of {evaluations} evaluations has no more real ones")
    real = {i * evaluations // nfe for i in range(nfe)}
    return tuple(i in real for i in range(evaluations))


def skip_mask(
    evaluations: int, calls: int, skips: int = 1, *, first: int = 1, last: int = 0
) -> Mask:
    """Turns of ``calls`` real evaluations and ``skips`` that are left out.

    FSampler's mode "h2/s3" is ``calls=3`` with ``order=2``, ``variable="index"`` and
    ``quantity="noise"`` of `Plan.cached`.

    Parameters
    ----------
    first, last : evaluations at the ends that are real before the first turn and after the last.

    Raises ValueError naming the argument that is out of range.
    """
    check_whole("evaluations", evaluations, 1)
    check_whole("calls", calls, 1)
    check_whole("skips", skips, 1)
    check_whole("first", first, 0)
    check_whole("last", last, 0)
    inner = range(evaluations - first - last)
    turns = [i % (calls + skips) < calls for i in inner]
    mask = [True] * first + turns + [True] * last
    return tuple(mask[:evaluations])

r"""The groups of a `Batch` shared over the processes of torch.distributed.

Every rank runs the same generator on the same data. At each sweep it evaluates its own part of
the P groups, and one all-gather hands everybody all outputs, so that all ranks go on from
identical numbers and no rank leads. How they find each other, and what happens when one of them
fails, is `processes`.

**Identical results.** A network's kernels are chosen by the size of the batch, and another kernel
rounds otherwise: a float32 UNet changes its outputs by 1e-6 when the same states come in batches
of another size. What is evaluated together must therefore not depend on the number of ranks. The
groups are cut into ``parts`` chunks, at floor(i P / parts), and each is one network call wherever
it lands; W ranks take parts / W neighbouring chunks each. One process alone makes the same calls
one after the other, and gets the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import count, pairwise

import torch
from torch import Tensor

from ..checks import is_whole
from ..plan import Plan
from ..processes import Message, RankError, Ranks
from ..requests import Evaluate


def share(evaluate: Evaluate, here: Ranks, plan: Plan, x_T: Tensor, *, parts: int = 8) -> Evaluate:
    """``evaluate`` with the groups of every batch shared over the ranks.

    Call it on every rank: it checks that all of them have the same plan and start states. The
    result is the ``evaluate`` of one run of ``sample_parallel``, called in lockstep. An exception
    on one rank ends all of them at that sweep.

    Parameters
    ----------
    evaluate : how this rank evaluates groups, as ``evaluator(denoise)`` returns it.
    here : what ``processes.ranks()`` gave.
    plan, x_T : of the run, for the check. Draw x_T from the same seed on every rank.
    parts : the P groups of a sweep are evaluated in at most so many network calls, spread over
        the ranks. At least the number of ranks; results are identical for equal ``parts``. A
        multiple of every number of ranks in question balances best (8: 1, 2, 4 and 8). More
        parts suit more ranks, and small networks on one rank lose by the smaller batches.

    Raises ValueError for parts < the number of ranks, `RankError` if the ranks disagree.
    """
    if not is_whole(parts, here.size):
        raise ValueError(
            f"parts={parts!r}: need a whole number of at least 1 a rank, {here.size} in all"
        )
    message = Message(_digest_of_run(plan, x_T, parts))
    here.exchange("the start", message, what="plan, x_T (from one seed, in one dtype) and parts")
    sweeps = count(1)

    def shared(x: Tensor, times: Sequence[float]) -> Tensor:
        when = f"sweep {next(sweeps)}"
        cuts = [i * len(x) // parts for i in range(parts + 1)]
        chunks = [here.mine(parts, rank) for rank in range(here.size)]
        spans = [(cuts[mine.start], cuts[mine.stop]) for mine in chunks]
        part = x.new_zeros(max(stop - start for start, stop in spans), *x.shape[1:])
        message, failure = Message(_digest_of_states(x, times)), None
        start, stop = spans[here.rank]
        own = cuts[chunks[here.rank].start : chunks[here.rank].stop + 1]
        try:
            _evaluate_chunks(evaluate, x, times, own, part[: stop - start])
        except Exception as error:
            if here.size == 1:
                raise
            failure, message = error, Message.of_failure(error)
        try:
            *_, gathered = here.exchange(
                when, message, part, what="states, kind of device, threads and version of torch"
            )
        except RankError as error:
            raise error from failure or error.__cause__
        parted = zip(gathered, spans, strict=True)
        return torch.cat([output[: stop - start] for output, (start, stop) in parted])

    return shared


def _evaluate_chunks(
    evaluate: Evaluate, x: Tensor, times: Sequence[float], cuts: Sequence[int], into: Tensor
) -> None:
    """The groups cuts[0] .. cuts[-1] of x, one call a chunk, written to ``into``."""
    for start, stop in pairwise(cuts):
        if start == stop:
            continue
        output = evaluate(x[start:stop], times[start:stop])
        if output.shape != x[start:stop].shape:
            need = tuple(x[start:stop].shape)
            raise ValueError(f"network returned shape {tuple(output.shape)}: need {need}")
        into[start - cuts[0] : stop - cuts[0]] = output


def _digest_of_run(plan: Plan, x_T: Tensor, parts: int) -> bytes:
    """SHA-256 of everything that decides the run's numbers, but for the network."""
    digest = hashlib.sha256(repr((parts, x_T.dtype, tuple(x_T.shape))).encode())
    digest.update(_bytes(x_T))
    for row in plan.rows:
        digest.update(repr((row.node, row.noise, row.target is None)).encode())
        digest.update(repr([j for j, _ in (*row.states, *row.outputs)]).encode())
        for value in (*row.coefficients(), *(row.target or ()), row.offset):
            digest.update(
                _bytes(value) if isinstance(value, Tensor) else float(value).hex().encode()
            )
    return digest.digest()


def _digest_of_states(x: Tensor, times: Sequence[float]) -> bytes:
    """SHA-256 of the times, and of a sum over the states' bits, which stay on their device."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    bits = x.contiguous().view(integer).sum(dtype=torch.int64).item()
    return hashlib.sha256(repr((bits, tuple(x.shape), list(times))).encode()).digest()


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

r"""The groups of a `Batch` shared over the processes of torch.distributed.

Every rank runs the same generator on the same data. At each sweep it evaluates its own part of
the P groups, and one all-gather hands everybody all outputs, so that all ranks go on from
identical numbers and no rank leads.

**Identical results.** A network's kernels are chosen by the size of the batch, and another kernel
rounds otherwise: a float32 UNet changes its outputs by 1e-6 when the same states come in batches
of another size. What is evaluated together must therefore not depend on the number of ranks. The
groups are cut into ``parts`` chunks, at floor(i P / parts), and each is one network call wherever
it lands; W ranks take parts / W neighbouring chunks each. One process alone makes the same calls
one after the other, and gets the same bits.

**Failures.** Every message starts with a header: whether the rank failed and why, and a digest
of the states it holds. An exception on one rank ends all of them at that sweep, with its text. A
process that is killed closes its connections, which ends the exchange on the others at once
(gloo) or after ``timeout`` (nccl, or a host that vanished); each rank has put the number of the
sweep it arrived at into the store, so that the error can name who is missing.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count, pairwise
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..plan import Plan
from ..requests import Evaluate

_TEXT = 991
_HEADER = struct.Struct(f"<?32s{_TEXT}s")  # failed, digest, text: 1 KiB, so the rest is aligned


class RankError(RuntimeError):
    """A rank failed, was lost, or holds other data than the others; the text says which."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work: this one is ``rank`` of 0 .. size - 1.

    ``device`` is where this rank's network and states belong.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    store: dist.Store | None = None


@contextmanager
def ranks(*, timeout: float = 25.0, threads: int | None = 1) -> Iterator[Ranks]:
    """Join the processes started by torchrun; alone without it. Leave them at the end.

    The backend is nccl with one GPU a rank (``LOCAL_RANK`` picks it) where there are GPUs, gloo
    on the CPU otherwise. A process group that is there already is used, and left as it is.

    Parameters
    ----------
    timeout : seconds to wait for another rank in one exchange. More than the longest that one
        rank may be ahead of another; a rank that hangs or vanishes is noticed after so long.
    threads : of torch on the CPU. They change how a network rounds, and torchrun sets one where
        a plain start takes every core: results are identical only for equal numbers. None
        leaves it as it is.

    Raises ValueError for a timeout that is not positive or threads < 1.
    """
    if not timeout > 0:
        raise ValueError(f"timeout={timeout!r}: need a positive number of seconds")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads!r}: need at least 1, or None")
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    joined = False
    try:
        if dist.is_available() and dist.is_initialized():
            here = Ranks(dist.get_rank(), dist.get_world_size(), _device(dist.get_backend()))
        elif "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            here, joined = _join(timedelta(seconds=timeout)), True
        else:
            here = Ranks(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        yield here
    finally:
        torch.set_num_threads(before)
        if joined:
            dist.destroy_process_group()


def _join(timeout: timedelta) -> Ranks:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore("logsnr", store)
    device = _device(backend)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return Ranks(rank, size, device, store)


def _device(backend: str) -> torch.device:
    if "nccl" not in backend:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def share(evaluate: Evaluate, here: Ranks, plan: Plan, x_T: Tensor, *, parts: int = 8) -> Evaluate:
    """``evaluate`` with the groups of every batch shared over the ranks.

    Call it on every rank: it checks that all of them have the same plan and start states. The
    result is the ``evaluate`` of one run of ``sample_parallel``, called in lockstep.

    Parameters
    ----------
    evaluate : how this rank evaluates groups, as ``evaluator(denoise)`` returns it.
    here : what ``ranks()`` gave.
    plan, x_T : of the run, for the check. Draw x_T from the same seed on every rank.
    parts : the P groups of a sweep are evaluated in at most so many network calls, spread over
        the ranks. At least the number of ranks; results are identical for equal ``parts``. A
        multiple of every number of ranks in question balances best (8: 1, 2, 4 and 8). More
        parts suit more ranks, and small networks on one rank lose by the smaller batches.

    Raises ValueError for parts < the number of ranks, `RankError` if the ranks disagree.
    """
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < here.size:
        raise ValueError(
            f"parts={parts!r}: need a whole number of at least 1 a rank, {here.size} in all"
        )
    digest = _digest_of_run(plan, x_T, parts)
    messages, _ = _exchange(here, _Message(digest), x_T.new_empty(0), "the start")
    _check_digests(messages, here, "the start", "plan, x_T and parts")
    chunks = [rank * parts // here.size for rank in range(here.size + 1)]
    sweeps = count(1)

    def shared(x: Tensor, times: Sequence[float]) -> Tensor:
        when = f"sweep {next(sweeps)}"
        cuts = [i * len(x) // parts for i in range(parts + 1)]
        spans = [(cuts[i], cuts[j]) for i, j in pairwise(chunks)]
        part = x.new_zeros(max(stop - start for start, stop in spans), *x.shape[1:])
        message, failure = _Message(_digest_of_states(x, times)), None
        try:
            start, stop = spans[here.rank]
            mine = cuts[chunks[here.rank] : chunks[here.rank + 1] + 1]
            _evaluate_chunks(evaluate, x, times, mine, part[: stop - start])
        except Exception as error:
            if here.size == 1:
                raise
            failure = error
            message = message._replace(failed=True, text=f"{type(error).__name__}: {error}")
        messages, gathered = _exchange(here, message, part, when)
        for rank, other in enumerate(messages):
            if other.failed:
                raise RankError(f"rank {rank} failed at {when}: {other.text}") from failure
        _check_digests(messages, here, when, "states, kind of device, threads and version of torch")
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


def _check_digests(messages: Sequence[_Message], here: Ranks, when: str, what: str) -> None:
    for rank, message in enumerate(messages):
        if message.digest != messages[here.rank].digest:
            raise RankError(
                f"{when}: rank {rank} works on other data than rank {here.rank}. Give every rank "
                f"the same {what} (start states from one seed, in one dtype)"
            )


class _Message(NamedTuple):
    """What a rank says beside its outputs."""

    digest: bytes  # of what it works on
    failed: bool = False
    text: str = ""


def _exchange(
    here: Ranks, message: _Message, part: Tensor, when: str
) -> tuple[list[_Message], list[Tensor]]:
    """One all-gather: the messages of all ranks, and their parts."""
    if here.size == 1:
        return [message], [part]
    text = message.text.encode()[: _TEXT - 1]
    header = torch.frombuffer(
        bytearray(_HEADER.pack(message.failed, message.digest, text)), dtype=torch.uint8
    )
    sent = torch.cat([header.to(here.device), part.flatten().view(torch.uint8).to(here.device)])
    received = sent.new_empty(here.size, len(sent))
    try:
        if here.store is not None:
            here.store.set(f"arrived/{here.rank}", when)
        dist.all_gather(list(received.unbind()), sent)
    except RuntimeError as error:
        raise RankError(f"{when}: {_missing(here, when)}") from error
    messages = []
    for row in received[:, : _HEADER.size].cpu():
        failed, digest, text = _HEADER.unpack(row.numpy().tobytes())
        messages.append(_Message(digest, failed, text.rstrip(b"\0").decode(errors="ignore")))
    bodies = received[:, _HEADER.size :].view(part.dtype).to(part.device)
    return messages, [body.view(part.shape) for body in bodies]


def _missing(here: Ranks, when: str) -> str:
    """Which ranks did not arrive at the exchange, as far as the store tells."""
    unknown = "lost another rank during the exchange: its process ended or hangs"
    if here.store is None:
        return unknown
    late = []
    try:
        for rank in range(here.size):
            key = f"arrived/{rank}"
            if not here.store.check([key]) or here.store.get(key) != when.encode():
                late.append(str(rank))
    except RuntimeError:
        # Without torchrun's agent, rank 0 keeps the store.
        return "lost rank 0, and with it the store: its process ended, or its host is gone"
    if not late:
        return unknown
    return f"lost rank {', '.join(late)}, which did not arrive: its process ended or hangs"


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

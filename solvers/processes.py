r"""The processes that share a piece of work, and what happens when one of them fails.

    with ranks(timeout=3600) as here, here.together("the shards"):
        here.check_same("the shards", "settings", settings)
        for k in here.mine(len(shards)):           # this rank's share of the numbers
            here.heed("the shards")                # has another rank failed meanwhile?
            work(shards[k])
        every = here.gather("the sums", data)      # bytes of every rank, on every rank
        here.barrier("the end")

The processes are those that torchrun started, or this one alone, for which all of this is nothing.

**Exchanges.** Ranks meet in `check_same`, `gather`, `broadcast`, `barrier`, which begin with one
all-gather of a header of 1 KiB from each: a digest of where the rank is and what it works on, its
data if they are short, or that it failed and why. All ranks make the same exchanges in the same
order; one that is elsewhere, or works on something else, is named in a `RankError`.

**Failures.** What is raised inside of `together` is sent with the rank's next exchange, so that all
others end there, with its text; those that look with `heed` between two pieces of work end at
once. A process that is killed closes its connections, which ends the exchange on the others at
once (gloo) or after the timeout (nccl, or a host that vanished). Each rank has put the number of
the exchange it arrived at into the store, so that the error can name who is missing.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

ROOM = 983
"""Bytes of data that a header holds."""
_HEADER = struct.Struct(f"<?32sQ{ROOM}s")  # failed, digest, length, data: 1 KiB, so parts align


class RankError(RuntimeError):
    """A rank failed, was lost, or works on something else than the others; the text says which."""


class Message(NamedTuple):
    """What a rank says in an exchange: its data, or why it failed."""

    digest: bytes = b""
    data: bytes = b""
    failed: bool = False

    @classmethod
    def of_failure(cls, error: BaseException, digest: bytes = b"") -> Message:
        """Of a rank on which ``error`` was raised."""
        return cls(digest, f"{type(error).__name__}: {error}".encode(), failed=True)


@dataclass(eq=False)
class Ranks:
    """The processes that share the work: this one is ``rank`` of 0 .. size - 1.

    ``device`` is where this rank's network and states belong; ``store`` is where ranks leave notes
    for each other, if there is one; ``exchanges`` counts those that are over.

    Of all methods ``when`` says where in the work the ranks meet: it is the same on all of them,
    and messages begin with it. All raise `RankError`, see the module's text.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    store: dist.Store | None = None
    exchanges: int = field(default=0, init=False)

    def mine(self, count: int, rank: int | None = None) -> range:
        """This rank's share (or another's) of the numbers 0 .. count - 1.

        Shares are neighbouring numbers in the order of the ranks; their sizes differ by at most 1.
        """
        rank = self.rank if rank is None else rank
        return range(rank * count // self.size, (rank + 1) * count // self.size)

    def barrier(self, when: str) -> None:
        """Wait until all ranks are here."""
        self.exchange(when, Message())

    def check_same(self, when: str, what: str, value: Any) -> None:
        """`RankError` unless ``repr(value)`` is the same on all ranks; ``what`` names it."""
        digest = hashlib.sha256(repr(value).encode()).digest()
        self.exchange(when, Message(digest), what=what)

    def gather(self, when: str, data: bytes) -> list[bytes]:
        """``data`` of every rank, on every rank; their lengths may differ."""
        if self.size == 1:
            return [data]
        messages, lengths, _ = self.exchange(when, Message(data=data))
        longest = max(lengths)
        if longest <= ROOM:
            return [message.data for message in messages]
        sent = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        rows = self._all_gather(when, sent).cpu()
        return [row[:n].numpy().tobytes() for row, n in zip(rows, lengths, strict=True)]

    def first(self, when: str, value: float) -> float:
        """``value`` of rank 0, on every rank."""
        told = struct.pack("<d", value) if self.rank == 0 else b""
        return float(struct.unpack("<d", self.gather(when, told)[0])[0])

    def broadcast(self, when: str, values: np.ndarray, source: int = 0) -> np.ndarray:
        """``values`` of rank ``source``, float64, on every rank; the others give their shape."""
        if self.size == 1:
            return values
        self.check_same(when, "shapes", values.shape)
        tensor = torch.from_numpy(np.array(values, dtype=np.float64)).to(self.device)
        with self._exchanging(when):
            dist.broadcast(tensor, source)
        return tensor.cpu().numpy()

    @contextmanager
    def together(self, when: str) -> Iterator[None]:
        """What is raised inside ends the work of all ranks, of each at its next exchange.

        The others raise a `RankError` with its text there. This one waits for them.
        """
        try:
            yield
        except (Exception, GeneratorExit) as error:
            if self.size > 1 and dist.is_initialized() and not _known(error):
                vars(error)["_told"] = True
                self._tell(when, Message.of_failure(error))
            raise

    def heed(self, when: str) -> None:
        """End here if another rank has failed since the last exchange: a look at the store.

        For long work between exchanges. Without it, a failure shows at the next of them.
        """
        if self.size > 1 and self.store is not None:
            with self._exchanging(when):
                failed = self.store.check([f"failed/{self.exchanges}"])
            if failed:
                self.barrier(when)  # where the other one waits

    def _tell(self, when: str, message: Message) -> None:
        try:
            if self.store is not None:
                self.store.set(f"failed/{self.exchanges}", "")
            self.exchange(when, message)
        except RuntimeError:
            pass  # the others end, or are gone; what was raised here says more than that

    def exchange(
        self,
        when: str,
        message: Message,
        part: Tensor | None = None,
        *,
        what: str = "arguments and calls",
    ) -> tuple[list[Message], list[int], list[Tensor]]:
        """One all-gather: a message, and a tensor of the same shape and dtype on all ranks.

        Returns the messages, which hold the first 983 bytes of their data, the lengths of these,
        and the parts, on the device of ``part``. `RankError` for a message that failed, sent from
        here too, and where digests differ: ranks have not the same ``what``.
        """
        part = torch.empty(0) if part is None else part
        if self.size == 1:
            return [message], [len(message.data)], [part]
        digest = hashlib.sha256(when.encode() + b"\0" + message.digest).digest()
        head = _HEADER.pack(message.failed, digest, len(message.data), message.data[:ROOM])
        header = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        body = part.flatten().view(torch.uint8)
        received = self._all_gather(when, torch.cat([header.to(body.device), body]))
        self.exchanges += 1
        messages, lengths = [], []
        for row in received[:, : _HEADER.size].cpu():
            failed, digest, length, data = _HEADER.unpack(row.numpy().tobytes())
            messages.append(Message(digest, data[:length], failed))
            lengths.append(length)
        self._check(when, messages, what)
        parts = received[:, _HEADER.size :].view(part.dtype).to(part.device)
        return messages, lengths, [one.view(part.shape) for one in parts]

    def _check(self, when: str, messages: list[Message], what: str) -> None:
        for rank, message in enumerate(messages):
            if message.failed:
                text = message.data.decode(errors="ignore")
                raise RankError(f"rank {rank} failed at {when}: {text}")
        for rank, message in enumerate(messages):
            if message.digest != messages[self.rank].digest:
                raise RankError(
                    f"{when}: rank {rank} works on other data than rank {self.rank}, or is "
                    f"elsewhere. Give every rank the same {what}"
                )

    def _all_gather(self, when: str, sent: Tensor) -> Tensor:
        sent = sent.to(self.device)
        received = sent.new_empty(self.size, len(sent))
        with self._exchanging(when):
            if self.store is not None:
                self.store.set(f"arrived/{self.rank}", str(self.exchanges))
            dist.all_gather(list(received.unbind()), sent)
        return received

    @contextmanager
    def _exchanging(self, when: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankError(f"{when}: {self._missing()}") from error

    def _missing(self) -> str:
        """Which ranks did not arrive at this exchange, as far as the store tells."""
        unknown = "lost another rank during the exchange: its process ended or hangs"
        if self.store is None:
            return unknown
        late = []
        try:
            for rank in range(self.size):
                key = f"arrived/{rank}"
                here = self.store.check([key]) and self.store.get(key).decode()
                if here != str(self.exchanges):
                    late.append(str(rank))
        except RuntimeError:
            # Without torchrun's agent, rank 0 keeps the store.
            return "lost rank 0, and with it the store: its process ended, or its host is gone"
        if not late:
            return unknown
        return f"lost rank {', '.join(late)}, which did not arrive: its process ended or hangs"


def _known(error: BaseException | None) -> bool:
    """Whether the others know of what led to ``error``."""
    while error is not None:
        if isinstance(error, RankError) or "_told" in vars(error):
            return True
        error = error.__cause__ or error.__context__
    return False


_present: tuple[Any, Ranks] | None = None
"""The process group of this process, and its ranks."""


def present() -> Ranks:
    """The processes of torch.distributed where it was initialised, else this one alone."""
    global _present
    if not (dist.is_available() and dist.is_initialized()):
        _present = None
        return Ranks(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    from torch.distributed import distributed_c10d  # not there where it is not available

    group = dist.group.WORLD
    if _present is None or _present[0] is not group:
        store = dist.PrefixStore("logsnr", distributed_c10d._get_default_store())
        device = _device(dist.get_backend())
        _present = group, Ranks(dist.get_rank(), dist.get_world_size(), device, store)
    return _present[1]


def _forget() -> None:
    global _present
    _present = None


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
        started = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        if started and not (dist.is_available() and dist.is_initialized()):
            _join(timedelta(seconds=timeout))
            joined = True
        yield present()
    finally:
        torch.set_num_threads(before)
        if joined:
            # With the last reference the threads of the group end here, not with the interpreter.
            _forget()
            dist.destroy_process_group()


def _join(timeout: timedelta) -> None:
    from torch.distributed.rendezvous import rendezvous

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    # torchrun's store outlives a group: notes of an earlier one are not for this one.
    number = (store.add("logsnr/joined", 1) - 1) // size
    store = dist.PrefixStore(f"logsnr/{number}", store)
    device = _device(backend)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _device(backend: str) -> torch.device:
    if "nccl" not in backend:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

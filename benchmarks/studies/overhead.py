"""``logsnr overhead``: what a step of PlanScheduler costs beside a step of diffusers' schedulers.

A step is timed as a pipeline calls it, without the network, in the middle of a run. Both schedulers
of a pair take turns in one process on one thread, so that the ratio does not depend on how busy the
machine is. Beside the time stand three numbers that no machine changes: tensor operations, tensors
of the sample's size that are allocated, and reads of a tensor by the host, which stall an
accelerator.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import diffusers
import torch
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from logsnr.adapters import PlanScheduler
from logsnr.solvers import VPLinear, make_plan
from logsnr.solvers.noise import noise_source
from logsnr.solvers.products import Products

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = 20
MIDDLE = range(4, 16)  # steps at full order

# Name: diffusers' scheduler, its options, ours.
PAIRS: dict[str, tuple[str, dict[str, Any], str]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, "ddim"),
    "DPM++2M": ("DPMSolverMultistepScheduler", {"solver_order": 2}, "dpm-solver++"),
    "UniPC-2": ("UniPCMultistepScheduler", {"solver_order": 2}, "unipc"),
    "DEIS-3": ("DEISMultistepScheduler", {"solver_order": 3}, "deis"),
}
EMPTY = ("empty", "empty_like", "empty_strided", "new_empty")
VIEWS = ("view", "reshape", "t", "unbind", "expand", "alias", "detach", "_unsafe_view", "select")
HOST_READS = ("_local_scalar_dense", "nonzero", "equal")


@dataclass(frozen=True)
class Count:
    """Of one step: tensor operations, allocations of the sample's size, reads by the host."""

    operations: int
    allocations: int
    host_reads: int


@dataclass(frozen=True)
class Cost:
    """A step of one pair at one shape: medians in microseconds, and what each step consists of."""

    pair: str
    shape: tuple[int, ...]
    ours_us: float
    stock_us: float
    ours: Count
    stock: Count

    @property
    def ratio(self) -> float:
        """stock / ours."""
        return self.stock_us / self.ours_us

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "ratio": self.ratio}


def pair(name: str) -> tuple[PlanScheduler, Any]:
    """(ours, diffusers') of a key of ``PAIRS``."""
    kind, options, solver = PAIRS[name]
    stock = getattr(diffusers, kind)(**LATENT, **options)
    order = {"solver_order": options["solver_order"]} if "solver_order" in options else {}
    return PlanScheduler.from_config(stock.config, solver=solver, **order), stock


class Counter(TorchDispatchMode):
    """Counts what happens to tensors while it is active; views cost nothing and are left out."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.operations = self.allocations = self.host_reads = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name, overload = str(function).split(".")[1:3]
        if name in HOST_READS:
            self.host_reads += 1
        if name in VIEWS:
            return result
        # An empty tensor is memory that the next operation fills.
        self.operations += name not in EMPTY
        written = overload.endswith("out") or name.endswith("_")
        if isinstance(result, Tensor) and result.numel() >= self.size and not written:
            self.allocations += 1
        return result

    @property
    def count(self) -> Count:
        """The numbers so far."""
        return Count(self.operations, self.allocations, self.host_reads)


def middle_steps(scheduler: Any, sample: Tensor, output: Tensor) -> Iterator[Callable[[], None]]:
    """A run of which every step in the middle is yielded, to be called once."""
    scheduler.set_timesteps(STEPS)
    state = sample

    def step(t: Tensor) -> None:
        nonlocal state
        state = scheduler.step(output, t, state, return_dict=False)[0]

    for i, t in enumerate(scheduler.timesteps):
        if i in MIDDLE:
            yield partial(step, t)
        else:
            step(t)


@torch.no_grad()
def count_step(scheduler: Any, shape: Sequence[int]) -> Count:
    """What a step in the middle consists of: the largest numbers over the steps of a run."""
    sample, output = torch.randn(2, *shape)
    counts = []
    for step in middle_steps(scheduler, sample, output):
        with Counter(sample.numel()) as counter:
            step()
        counts.append(counter.count)
    return Count(
        max(count.operations for count in counts),
        max(count.allocations for count in counts),
        max(count.host_reads for count in counts),
    )


@torch.no_grad()
def time_steps(schedulers: Sequence[Any], shape: Sequence[int], runs: int) -> list[float]:
    """Median time in microseconds of a middle step of each scheduler, run in turns."""
    sample, output = torch.randn(2, *shape)
    times: list[list[float]] = [[] for _ in schedulers]
    for run in range(runs + 1):
        for scheduler, taken in zip(schedulers, times, strict=True):
            for step in middle_steps(scheduler, sample, output):
                begin = perf_counter()
                step()
                end = perf_counter()
                if run > 0:  # the first run warms up
                    taken.append(1e6 * (end - begin))
    return [median(taken) for taken in times]


def measure(name: str, shape: Sequence[int], runs: int) -> Cost:
    """The cost of both schedulers of a pair at ``shape``, float32, on one thread."""
    ours, stock = pair(name)
    keep_freed_memory()
    with one_thread():
        ours_us, stock_us = time_steps((ours, stock), shape, runs)
        counts = count_step(ours, shape), count_step(stock, shape)
    return Cost(name, tuple(shape), ours_us, stock_us, *counts)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Tell the C library of Linux not to return freed memory to the system.

    Large tensors would otherwise be taken from the system and given back at every step, of either
    side, and the page faults would cost several times what the step does.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            trim_threshold, mmap_threshold = -1, -3
            library.mallopt(trim_threshold, 2**30)
            library.mallopt(mmap_threshold, 2**30)


ROWS = {"a state that is held": ("unipc", 2), "the state handed out": ("deis", 3)}
"""What the rows of `traffic` start from, each a state and three outputs: solver and order."""


@torch.no_grad()
def traffic(
    shape: Sequence[int], runs: int, row: str = "a state that is held"
) -> tuple[float, float]:
    """Median microseconds of a row of ``ROWS``, and of a copy.

    The row reads four tensors and writes one; the copy reads and writes as many bytes.
    """
    x, output = torch.randn(2, *shape)
    solver, order = ROWS[row]
    plan = make_plan(solver, VPLinear(), nfe=6, order=order)
    executor = Products(plan, "epsilon", x)
    at = next(k for k in range(4, len(plan.rows)) if len(plan.rows[k].outputs) == 3)
    for k in range(at):
        if k > 0:
            executor.combine(k, noise_source(None))
        if plan.rows[k].evaluated:
            executor.evaluate(k, output, shared=False)
    source = torch.randn(x.numel() * 5 // 2)
    target = torch.empty_like(source)
    keep_freed_memory()
    times: tuple[list[float], list[float]] = ([], [])
    jobs = (lambda: executor.again(at), lambda: target.copy_(source))
    with one_thread():
        for _ in range(10 * runs + 1):
            for job, taken in zip(jobs, times, strict=True):
                begin = perf_counter()
                job()
                taken.append(1e6 * (perf_counter() - begin))
    return median(times[0][1:]), median(times[1][1:])


def parse_shape(text: str) -> tuple[int, ...]:
    """The sizes of 8x4x128x128; ValueError unless there are at least two, all positive."""
    parts = text.lower().split("x")
    if len(parts) < 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"shape={text!r}: need sizes with x between, as in 8x4x128x128")
    return tuple(map(int, parts))


def table(costs: Sequence[Cost]) -> Table:
    """The costs, a line a pair and shape."""
    result = Table(title="scheduler.step: PlanScheduler (diffusers)")
    for column in ("scheduler", "shape"):
        result.add_column(column, no_wrap=True)
    result.caption = "ops: tensor operations; allocs: of the sample's size; reads: by the host"
    for column in ("µs", "ratio", "ops", "allocs", "reads"):
        result.add_column(column, justify="right", no_wrap=True)
    for cost in costs:
        result.add_row(
            cost.pair,
            "x".join(map(str, cost.shape)),
            f"{cost.ours_us:.0f} ({cost.stock_us:.0f})",
            f"1/{cost.ratio:.1f}",
            f"{cost.ours.operations} ({cost.stock.operations})",
            f"{cost.ours.allocations} ({cost.stock.allocations})",
            f"{cost.ours.host_reads} ({cost.stock.host_reads})",
        )
    return result

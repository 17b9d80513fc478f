"""The networks inside a pipeline: counting their calls, and the times they are told."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Hook = tuple[tuple[Any, ...], dict[str, Any]]
Times = Callable[[], tuple[Tensor, float]]
"""The times of one iteration's samples, and the one time that the pipeline was told."""


class Networks:
    """The components of a pipeline that are told a time (UNet, transformer, ControlNet, ...).

    A context manager: whatever is changed about them is undone at its end.

    Attributes
    ----------
    calls : how often each was called, by the component's name.
    """

    def __init__(self, pipe: Any):
        parts = {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module)}
        told = set(TIME_ARGUMENTS)
        self.modules = {n: part for n, part in parts.items() if told & set(_parameters(part))}
        self.calls: Counter[str] = Counter()
        self._counters: list[Any] = []
        self._tellers: list[Any] = []
        self._outputs: dict[str, Any] = {}
        self._forwards: dict[str, Any] = {}

    def __enter__(self) -> Networks:
        for name, module in self.modules.items():
            # First of the hooks, so that the output is what `forward` returned.
            handle = module.register_forward_hook(self._counter(name), prepend=True)
            self._counters.append(handle)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in (*self._counters, *self._tellers):
            handle.remove()
        self.wake()
        self._outputs.clear()

    def rest(self) -> None:
        """From here on repeat the last output: the pipeline's loop goes on, but costs nothing."""
        for handle in self._tellers:
            handle.remove()
        for name, module in self.modules.items():
            self._forwards[name] = vars(module).get("forward")
            module.forward = self._repeat(name)

    def wake(self) -> None:
        """End a `rest`: the networks are called again."""
        for name, forward in self._forwards.items():
            del self.modules[name].forward
            if forward is not None:
                self.modules[name].forward = forward
        self._forwards.clear()

    def tell(
        self, times: Times, training_steps: int, when: Callable[[], bool] = lambda: True
    ) -> None:
        """From here on replace the one time of each call by a time for each sample.

        ``times()`` gives the times (P,) of the samples and the one time that the pipeline was
        told, both in the units of the scheduler's ``timesteps``. A call on k P rows, with k for
        the prompts and the copies of classifier-free guidance, is told them k times over. Calls
        for which ``when()`` is false are told what the pipeline tells them.
        """
        for name, module in self.modules.items():
            hook = _PerSample(name, _parameters(module), times, training_steps, when)
            self._tellers.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _counter(self, name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: Any, output: Any) -> None:
            if name not in self._forwards:
                self.calls[name] += 1
                self._outputs[name] = output

        return count

    def _repeat(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._outputs[name]


class _PerSample:
    """A forward pre-hook that gives each sample its own time, in the pipeline's own units."""

    def __init__(
        self,
        name: str,
        parameters: list[str],
        times: Times,
        steps: int,
        when: Callable[[], bool],
    ):
        self.name, self.times, self.steps, self.when = name, times, steps, when
        self.states, self.key = parameters[0], _time_argument(parameters)
        self.place = parameters.index(self.key)
        self.units = list(UNITS)  # those that agree with what the pipeline passed so far

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hook:
        if not self.when():
            return args, kwargs
        given = kwargs[self.key] if self.key in kwargs else args[self.place]
        states = args[0] if args else kwargs[self.states]
        times, told = self.times()
        rows = len(states)
        if rows % len(times):
            raise ValueError(
                f"{self.name} is called on {rows} rows, which are not copies of the "
                f"{len(times)} samples: this pipeline cannot take them at different times"
            )
        new = self._converted(given, times, told).repeat(rows // len(times))
        if self.key in kwargs:
            return args, {**kwargs, self.key: new}
        return (*args[: self.place], new, *args[self.place + 1 :]), kwargs

    def _converted(self, given: Any, times: Tensor, told: float) -> Tensor:
        """``times`` as the pipeline would have passed them, judging by what it made of one."""
        if not isinstance(given, Tensor):
            given = torch.tensor(given, dtype=torch.float32 if isinstance(given, float) else None)
        if given.ndim > 1:
            raise ValueError(
                f"{self.name} is told a time for each token, {tuple(given.shape)}: this pipeline "
                "cannot take samples at different times"
            )
        # In the dtype and the order of the pipeline's own operations: `t.to(dtype) / 1000`.
        whole = not given.is_floating_point()
        values = (times.round() if whole else times).to(given.device, given.dtype)
        if len(self.units) > 1:
            value = float(given.flatten()[0])
            self.units = [name for name in self.units if self._fits(name, told, value)]
            if not self.units:
                raise ValueError(
                    f"{self.name} is told {value:g} where timesteps has {told:g}, which is none of "
                    f"{', '.join(UNITS)}: it cannot be told other times"
                )
        first, *others = (UNITS[name](values, self.steps) for name in self.units)
        if not all(map(first.equal, others)):
            raise ValueError(
                f"{self.name} is told {float(given.flatten()[0]):g} where timesteps has {told:g}: "
                f"this may be {' or '.join(self.units)}. Start at another time"
            )
        return first

    def _fits(self, name: str, told: float, value: float) -> bool:
        # The pipeline may have rounded to bfloat16.
        return math.isclose(UNITS[name](told, self.steps), value, rel_tol=1e-2, abs_tol=1e-2)


TIME_ARGUMENTS = ("timestep", "timesteps", "t")

UNITS: dict[str, Callable[[Any, int], Any]] = {
    "t": lambda t, steps: t,
    "t / N": lambda t, steps: t / steps,
    "(N - t) / N": lambda t, steps: (steps - t) / steps,
}


def _parameters(module: nn.Module) -> list[str]:
    compiled = getattr(module, "_orig_mod", module)
    return list(inspect.signature(compiled.forward).parameters)


def _time_argument(parameters: list[str]) -> str:
    return next(name for name in TIME_ARGUMENTS if name in parameters)

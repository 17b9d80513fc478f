r"""Options as values: a frozen dataclass whose fields a function takes as its own arguments.

    @dataclass(frozen=True)
    class Picard:
        window: int | None = None
        tolerance: float = 0.0
        _: KW_ONLY
        update: str = "semilinear"

        def __post_init__(self) -> None: ...  # ValueError for a value that is out of range

    @takes(Picard)
    def sample_parallel(denoise, x_T, plan, options): ...

    sample_parallel(denoise, x_T, plan, 8, update="literal")
    sample_parallel(denoise, x_T, plan, options=Picard(8))  # who has a value hands it on

So an option is declared, documented, defaulted and checked once, whatever takes it or hands it on:
who hands options on hands on one value. A class that inherits has more of them, or other defaults.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

P = ParamSpec("P")
Options = TypeVar("Options", covariant=True)
Result = TypeVar("Result")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")

_LISTED = re.compile(r"^( *)options : .*\n(?:\1 +.*\n)*", re.MULTILINE)
"""The place in a function's docstring where the entries of its options go."""


class _Decorator(Protocol[P, Options]):
    """For a type checker: the last positional argument becomes those of the class."""

    @overload
    def __call__(
        self, function: Callable[[A, B, Options], Result], /
    ) -> Callable[Concatenate[A, B, P], Result]: ...

    @overload
    def __call__(
        self, function: Callable[[A, B, C, Options], Result], /
    ) -> Callable[Concatenate[A, B, C, P], Result]: ...

    @overload
    def __call__(self, function: Callable[..., Result], /) -> Callable[..., Result]: ...


def takes(kind: Callable[P, Options]) -> _Decorator[P, Options]:
    """Decorator: the argument ``options`` of a function becomes the fields of ``kind``.

    They follow the function's own positional arguments, and its own keywords. The entry "options"
    in the docstring becomes those of the docstrings of ``kind`` and what it inherits.
    """

    value: Any = kind

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function)
        added = inspect.signature(kind).parameters
        rest = [p for name, p in own.parameters.items() if name != "options"]
        parameters = sorted([*rest, *added.values()], key=lambda p: p.kind)
        signature = own.replace(parameters=parameters)

        @wraps(function)
        def wrapper(*args: Any, options: Any = None, **keywords: Any) -> Any:
            try:
                given = signature.bind(*args, **keywords).arguments
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            fields = {name: given.pop(name) for name in added if name in given}
            if options is None:
                return function(**given, options=value(**fields))
            if fields:
                raise TypeError(f"{function.__name__}() got {next(iter(fields))} beside options")
            if not isinstance(options, value):
                raise ValueError(f"options={options!r}: need {value.__name__}(...)")
            return function(**given, options=options)

        wrapper.__signature__ = signature  # type: ignore[attr-defined]
        if function.__doc__:
            wrapper.__doc__ = _LISTED.sub(lambda place: _entries(kind, place[1]), function.__doc__)
        return wrapper

    return decorate


def _entries(kind: Any, indent: str) -> str:
    """The entries of the parameters of ``kind``: first those that it inherits, in its own words."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        text = inspect.cleandoc(vars(one).get("__doc__") or "")
        _, _, listed = text.partition("Parameters\n----------\n")
        for entry in re.split(r"\n(?=\S)", listed.split("\n\n")[0]):
            found[entry.partition(" : ")[0]] = entry
    lines = "\n".join(entry for entry in found.values() if entry).split("\n")
    return "".join(f"{indent}{line}\n" for line in lines)

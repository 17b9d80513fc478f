r"""Names that people bring: other programs' spellings of solvers, spacings and options.

One table for `make_plan`, `PlanScheduler` and the command line. Case and the separators (space,
``-``, ``_``) do not matter, "pp" is "++", and a number behind a solver is its order:

    "UniPC", "uni_pc_bh2", "unipc-3", "UniPCMultistepScheduler"    unipc, with an option or without
    "dpmpp_2m", "DPM++ 2M", "DPMSolverMultistepScheduler"          dpm-solver++

A name that is unknown raises a ValueError with the choices, and with the nearest one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Options = dict[str, Any]

# Keys are in the form of `_spelled`. The names are those of ComfyUI, of AUTOMATIC1111's web UI and
# of diffusers (without "Scheduler"); docs/pipelines.md has them side by side.
ALIASES: dict[str, tuple[str, Options]] = {
    "euler-a": ("euler-ancestral", {}),
    "eulerancestraldiscrete": ("euler-ancestral", {}),
    "dpm2-a": ("dpm2-ancestral", {}),
    "dpm-2-a": ("dpm2-ancestral", {}),
    "dpm-2-ancestral": ("dpm2-ancestral", {}),
    "kdpm2ancestraldiscrete": ("dpm2-ancestral", {}),
    "dpmpp-2s-a": ("dpm++2s-ancestral", {}),
    "flow-grpo": ("euler-maruyama", {"diffusion": "flow-grpo"}),
    "dance-grpo": ("euler-maruyama", {"diffusion": "constant"}),
    "flow-cps": ("cps", {}),
    "pc": ("langevin", {}),
    "predictor-corrector": ("langevin", {}),
    "flowmatcheulerdiscrete": ("ddim", {}),
    "eulerdiscrete": ("euler", {}),
    "edmeuler": ("euler", {}),
    "heundiscrete": ("heun", {}),
    "flowmatchheundiscrete": ("heun", {}),
    "dpm-2": ("dpm2", {}),
    "kdpm2discrete": ("dpm2", {}),
    "lmsdiscrete": ("lms", {}),
    "plms": ("ipndm", {"order": 4}),
    "pndm": ("ipndm", {"order": 4}),
    "ipndm-v": ("ipndm", {"variant": "variable"}),
    "deismultistep": ("deis", {}),
    "unipcmultistep": ("unipc", {}),
    "uni-pc": ("unipc", {"variant": "bh1"}),
    "uni-pc-bh2": ("unipc", {"variant": "bh2"}),
    "dpmpp": ("dpm-solver++", {}),
    "dpmpp-2m": ("dpm-solver++", {"order": 2}),
    "dpmpp-3m": ("dpm-solver++", {"order": 3}),
    "dpmpp-2s": ("dpm-solver++", {"order": 2, "steps": "singlestep"}),
    "dpmpp-3s": ("dpm-solver++", {"order": 3, "steps": "singlestep"}),
    "dpm-2m": ("dpm-solver", {"order": 2, "steps": "multistep"}),
    "dpm-fast": ("dpm-solver", {"order": 3}),
    "dpmsolvermultistep": ("dpm-solver++", {}),
    "edmdpmsolvermultistep": ("dpm-solver++", {}),
    "dpmsolversinglestep": ("dpm-solver++", {"steps": "singlestep"}),
    "dpm-v3": ("dpm-solver-v3", {}),
    "er-sde-solver": ("er-sde", {}),
    "sa-solver-pece": ("sa-solver", {"pece": True}),
    "dpmpp-sde": ("sde-dpm-solver++", {"order": 2, "steps": "singlestep"}),
    "dpmpp-sde-gpu": ("sde-dpm-solver++", {"order": 2, "steps": "singlestep"}),
    "dpmpp-2m-sde": ("sde-dpm-solver++", {"order": 2}),
    "dpmpp-2m-sde-gpu": ("sde-dpm-solver++", {"order": 2}),
    "dpmpp-2m-sde-heun": ("sde-dpm-solver++", {"order": 2, "solver_type": "heun"}),
    "dpmpp-2m-sde-heun-gpu": ("sde-dpm-solver++", {"order": 2, "solver_type": "heun"}),
    "dpmpp-3m-sde": ("sde-dpm-solver++", {"order": 3, "solver_type": "heun"}),
    "dpmpp-3m-sde-gpu": ("sde-dpm-solver++", {"order": 3, "solver_type": "heun"}),
    "dpmsolversde": ("sde-dpm-solver++", {"order": 2, "steps": "singlestep"}),
    "sde-dpmsolver": ("sde-dpm-solver++", {"prediction": "noise"}),
    "exp-heun-2-x0": ("seeds", {"order": 2, "r": 1.0, "solver_type": "phi_2", "eta": 0.0}),
    "exp-heun-2-x0-sde": ("seeds", {"order": 2, "r": 1.0, "solver_type": "phi_2"}),
    "res-multistep": ("res", {}),
    "res-multistep-ancestral": ("res", {"eta": 1.0}),
}

_ADAPTIVE = "steps of automatic size are sample_adaptive, and adaptive() with run_pipeline"
_DISTILLED = "it is for distilled networks, and no solver of an ODE"
ABSENT: dict[str, str] = {
    "dpm-adaptive": _ADAPTIVE,
    "lcm": _DISTILLED,
    "tcd": _DISTILLED,
}
"""What other programs have under a name that is none of ours, and what is nearest to it."""

SPACING_ALIASES = {
    "uniform": "time",
    "time-uniform": "time",
    "time-quadratic": "quadratic",
    "edm": "karras",
    "polyexponential": "exponential",
}
_STEPS = "it depends on the model and the solver what comes near; docs/pipelines.md says"
SPACING_HINTS = {
    "normal": _STEPS,
    "sgm-uniform": _STEPS,
    "ddim-uniform": _STEPS,
    "simple": "trailing has the same training steps but for their rounding",
    "ays": "there are 'ays-sd15', 'ays-sdxl' and 'ays-svd'",
    "align-your-steps": "there are 'ays-sd15', 'ays-sdxl' and 'ays-svd'",
}
"""What other programs have under a name that is no spacing here, and what is nearest to it."""
WRITTEN_BEHIND = ("karras", "exponential", "beta", "trailing", "leading")
"""Spacings that the web UI writes behind the name of a solver, as in "DPM++ 2M Karras"."""


def find_name(name: Any, offered: Mapping[str, Mapping[str, Any]]) -> tuple[str, Options]:
    """The key of ``offered`` (solver: its options) that a name means, and the options it implies.

    Raises ValueError with the choices for a name that means none.
    """
    found = meaning(name, offered) if isinstance(name, str) else None
    if found is not None:
        return found[0], dict(found[1])
    hint = None
    if isinstance(name, str):
        text = _spelled(name)
        hint = _of(ABSENT, text)
        if text.replace("-", "").endswith("cfgpp"):
            hint = "CFG++ is a guidance, ClassifierFreePP, which goes with every solver"
        head, _, tail = text.rpartition("-")
        if tail in WRITTEN_BEHIND and meaning(head, offered) is not None:
            hint = f"the spacing has an option of its own: {name[: -len(tail) - 1]!r} with {tail!r}"
    raise unknown("solver", name, sorted(offered), others=ALIASES, hint=hint)


def meaning(name: str, offered: Mapping[str, Mapping[str, Any]]) -> tuple[str, Options] | None:
    """As `find_name`; None for a name that means none."""
    if name in offered:
        return name, {}
    own: dict[str, tuple[str, Options]] = {_spelled(key): (key, {}) for key in offered}
    present = {key: value for key, value in ALIASES.items() if value[0] in offered}
    text = _spelled(name)
    for table in (own, present):
        if text in table:
            return table[text]
    found = _of(own, text) or _of(present, text)
    if found is None and (numbered := re.fullmatch(r"(.*?)-?(\d\d?)", text)):
        base = meaning(numbered[1], offered)
        if base is not None and "order" in offered[base[0]] and "order" not in base[1]:
            found = base[0], {**base[1], "order": int(numbered[2])}
    return found


def _of(table: Mapping[str, T], text: str) -> T | None:
    """The entry of a spelling, whatever its separators."""
    squeezed = {key.replace("-", ""): value for key, value in reversed(list(table.items()))}
    return squeezed.get(text.replace("-", ""))


def _spelled(name: str) -> str:
    """Lower case, "pp" for "++", one hyphen for any separators, without "Scheduler"."""
    text = re.sub(r"[\s_-]+", "-", name.strip().lower().replace("++", "pp"))
    return text.removesuffix("scheduler").strip("-")


def find_spacing(name: Any, offered: Iterable[str], argument: str = "spacing") -> str:
    """The entry of ``offered`` that a spacing's name means; ValueError with the choices."""
    choices = tuple(offered)
    found = as_spelled(name, choices)
    if found is None and isinstance(name, str):
        found = _of(SPACING_ALIASES, _spelled(name))
    if found not in choices:
        hint = _of(SPACING_HINTS, _spelled(name)) if isinstance(name, str) else None
        raise unknown(argument, name, choices, others=SPACING_ALIASES, hint=hint)
    return found


def as_spelled(name: Any, choices: Iterable[str]) -> str | None:
    """The choice that ``name`` is but for its case and its separators; None without any."""
    listed = list(choices)
    if name in listed:
        return name
    if not isinstance(name, str):
        return None
    return _of({_spelled(choice): choice for choice in listed}, _spelled(name))


def unknown(
    argument: str,
    value: Any,
    choices: Iterable[str],
    *,
    others: Iterable[str] = (),
    hint: str | None = None,
) -> ValueError:
    """The error for a value that is none of ``choices``, with the nearest of them and of others."""
    listed = list(choices)
    if hint is None and (near := nearest(value, [*listed, *others])) is not None:
        hint = f"did you mean {near!r}?"
    text = f"{argument}={value!r}: choose one of {', '.join(listed)}"
    return ValueError(text if hint is None else f"{text}; {hint}")


def nearest(value: Any, choices: Iterable[str]) -> str | None:
    """The choice that ``value`` may be a misspelling of, None without any."""
    if not isinstance(value, str):
        return None
    spelled = {_spelled(choice): choice for choice in reversed(list(choices))}
    found = difflib.get_close_matches(_spelled(value), spelled, n=1)
    return spelled[found[0]] if found else None


def also_named(names: Mapping[str, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function take keyword arguments under other names too (theirs: ours).

    A ValueError that begins with our name of an argument then begins with the one that was used.
    Raises ValueError if an argument is given under both.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def renamed(*args: P.args, **kwargs: P.kwargs) -> T:
            typed = {ours: name for name, ours in names.items() if name in kwargs}
            for ours, name in typed.items():
                if ours in kwargs:
                    raise ValueError(
                        f"{name}={kwargs[name]!r} and {ours}={kwargs[ours]!r} are one option: "
                        "give one of them"
                    )
                kwargs[ours] = kwargs.pop(name)
            with in_words(typed):
                return function(*args, **kwargs)

        return renamed

    return decorate


@contextmanager
def in_words(typed: Mapping[str, str]) -> Iterator[None]:
    """Let errors that begin with our name of an argument begin with the user's (ours: theirs)."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        ours = re.match(r"\w*", text)[0]  # type: ignore[index]  # it matches any text
        if ours not in typed:
            raise
        raise ValueError(typed[ours] + text[len(ours) :]) from error

"""The contenders of ``logsnr demo``, and what it compares when nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLES = 20
NFE = (5, 8, 10, 20)
V3 = "dpm-solver-v3"
OURS = "PlanScheduler"
PASTED = "pasted"
TUNED = "tuned"
PSEUDO = {"p_pseudo": True, "c_pseudo": False}  # the best of the four on the digits, docs/ems.md


@dataclass(frozen=True)
class Method:
    """A contender: a plan of this project's, its scheduler, or one of diffusers' schedulers.

    ``solver`` is the name of a solver, or of the scheduler's class, or a folder of cards.
    """

    title: str
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scheduler(self) -> bool:
        """Whether it is run by the ``step`` of a scheduler, ours or one of diffusers."""
        return self.solver.endswith("Scheduler")

    @property
    def stock(self) -> bool:
        """Whether it is one of diffusers' schedulers."""
        return self.scheduler and self.solver != OURS


@dataclass(frozen=True)
class Lineup:
    """What is compared on one of the embedded models.

    methods : by their names on the command line.
    highlights : the lines of the plot where there would be more than can be told apart: ours, and
        of diffusers' schedulers the best, as the model's config says and on the best other grids.
    shown : the rows of the pictures, likewise, under the converged solution.
    grid : of our solvers.
    labels, ends : how the page tells the samples' labels, and where all methods end.
    """

    methods: Mapping[str, Method]
    highlights: tuple[str, ...]
    shown: tuple[str, ...]
    grid: str
    labels: str
    ends: str


def _ours(grid: str) -> dict[str, Method]:
    """Our solvers on one grid, and the line that people paste."""

    def method(title: str, solver: str, **options: Any) -> Method:
        return Method(title, solver, {"spacing": grid, **options})

    return {
        "ddim": method("DDIM", "ddim"),
        "heun": method("Heun", "heun"),
        "dpm++2s": method("DPM++ 2S", "dpm-solver++", order=2, steps="singlestep"),
        "dpm++3s": method("DPM++ 3S", "dpm-solver++", order=3, steps="singlestep"),
        "dpm++2m": method("DPM++ 2M", "dpm-solver++", order=2),
        "dpm++3m": method("DPM++ 3M", "dpm-solver++", order=3),
        "unipc-2": method("UniPC-2", "unipc", order=2),
        "unipc-3": method("UniPC-3", "unipc", order=3),
        PASTED: Method("PlanScheduler, nothing said", OURS),
    }


def _tuned(model: str) -> dict[str, Method]:
    """The cards that the embedded model has, for some numbers of evaluations."""
    folder = Path(__file__).parent.parent / "embedded" / model / "cards"
    return {TUNED: Method("tuned (cards)", f"card:{folder}")}


_GRIDS: dict[str, dict[str, Any]] = {
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "shift": {"flow_shift": 0.5},
}


def _stock(name: str, title: str, scheduler: str, *grids: str) -> dict[str, Method]:
    """diffusers' scheduler with the model's own config, and on each of ``grids``."""
    methods = {name: Method(f"diffusers {title}", scheduler)}
    for grid in grids:
        said = "shift 0.5" if grid == "shift" else grid
        methods[f"{name}-{grid}"] = Method(f"diffusers {title}, {said}", scheduler, _GRIDS[grid])
    return methods


FACES = Lineup(
    methods={
        **_ours("auto"),
        **_tuned("faces"),
        **_stock("stock-euler", "Euler", "FlowMatchEulerDiscreteScheduler", "karras"),
        **_stock("stock-heun", "Heun", "FlowMatchHeunDiscreteScheduler"),
        **_stock("stock-dpm++2m", "DPM++ 2M", "DPMSolverMultistepScheduler"),
        **_stock("stock-unipc-2", "UniPC-2", "UniPCMultistepScheduler", "shift"),
    },
    highlights=(
        PASTED,
        TUNED,
        "unipc-3",
        "stock-euler",
        "stock-unipc-2",
        "stock-unipc-2-shift",
    ),
    shown=("stock-euler", "stock-unipc-2", PASTED),
    grid="auto",
    labels="hair, glasses, hats and the rest spread as in the data",
    ends="Every method starts at pure noise, t = 1, and ends at the data, t = 0.",
)
DIGITS = Lineup(
    methods={
        **_ours("karras"),
        **_tuned("digits"),
        "dpm-v3": Method(
            "DPM-Solver-v3",
            V3,
            {"spacing": "karras", "order": 3, **PSEUDO, "treatment": "spline", "fallback": False},
        ),
        **_stock("stock-ddim", "DDIM", "DDIMScheduler", "trailing"),
        **_stock("stock-dpm++2m", "DPM++ 2M", "DPMSolverMultistepScheduler", "trailing", "karras"),
        **_stock("stock-unipc-2", "UniPC-2", "UniPCMultistepScheduler", "trailing", "karras"),
    },
    highlights=(
        PASTED,
        TUNED,
        "unipc-3",
        "stock-unipc-2",
        "stock-unipc-2-trailing",
        "stock-unipc-2-karras",
    ),
    shown=("stock-unipc-2", "stock-unipc-2-trailing", PASTED),
    grid="karras",
    labels="labels 0 to 9 in turn",
    ends=(
        "Every method ends at training step 0 (t = 1/1000), where noise of sigma = 0.03 is left: "
        'ours by default, diffusers\' with `final_sigmas_type="sigma_min"` and, for DDIM, '
        "`set_alpha_to_one=False`."
    ),
)
LINEUPS = {"faces": FACES, "digits": DIGITS}
"""By the model; docs/demo.md has the measurements by which diffusers' grids were chosen."""
NAMES = tuple(dict.fromkeys(name for lineup in LINEUPS.values() for name in lineup.methods))
"""All names of methods."""

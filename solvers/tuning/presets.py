"""Published ways of fitting a solver, as bundles of options.

Each fits what its paper fits, as far as it is a plan of one evaluation a row, by our references,
safety and restart. What is not reproduced: the adversarial term of GAS; the turns of S4S-Alt
(coefficients and nodes are fitted together); LPIPS, which is ``features=`` of the user's own;
DyWeight's factor of the network's time, which is an additive shift here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..names import nearest

DPM_3M: dict[str, Any] = {"solver": "dpm-solver++", "solver_options": {"order": 3}}
IPNDM: dict[str, Any] = {"solver": "ipndm", "solver_options": {"order": 3}}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Shaul et al. 2024 (2403.01329): nodes and all coefficients; L2 at the end; the best iterate
    "bns": {"level": "full", "rows": "free", "told": False, "objective": "mse"},
    # Frankel et al. 2025 (2502.17423): coefficients and nodes; starts may move
    "s4s": {"level": "full", "rows": "free", "told": False, "objective": "mse", "relax": 0.05},
    # Tong et al. 2025 (2405.15506): nodes; starts may move
    "ld3": {"level": "grid", "objective": "mse", "relax": 0.05},
    # Oganov et al. 2025: nodes by stick-breaking, coefficients on DPM-Solver++(3M), times told
    "gas": {
        "level": "full",
        "rows": "free",
        "objective": "mse",
        "optimiser": "adam",
        "rate": 1e-3,
        "iterations": 10_000,
        "batch_size": 24,
        "average": 0.999,
        **DPM_3M,
    },
    # 2026: weights with free sums and the network's times, on iPNDM
    "dyweight": {"level": "full", "rows": "free", "objective": "mse", **IPNDM},
}


def preset_options(name: str) -> dict[str, Any]:
    """The options of a published way of fitting. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        near = nearest(str(name), PRESETS)
        raise ValueError(
            f"preset={name!r}: choose one of {', '.join(map(repr, PRESETS))}"
            + ("" if near is None else f"; did you mean {near!r}?")
        )
    return dict(PRESETS[name])

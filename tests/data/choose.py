"""Select the reference cases beside this file from a full set: ``python choose.py SOURCE``.

SOURCE is a folder in the same format (see README.md). Of each family the smallest set of cases is
taken, greedily, in which every three (of some families: two) settings that occur together in SOURCE
occur together again: (order 3, bh1, cosine schedule), (order 2, singlestep, 5 steps), and so on.
Nothing is random.
"""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

TOGETHER = {
    "dpm_solver": 3, "unipc": 3, "edm_thuml": 3,
    "deis": 2, "diff_sampler": 2, "nvlabs_edm": 2, "k_diffusion": 2, "diffusers": 2,
    "dpm_solver_v3": 2, "paradigms": 2, "er_sde": 2, "sa_solver": 2,
}  # fmt: skip
"""How many settings that occur together in SOURCE occur together in the selection."""
STOCHASTIC = ("er_sde", "sa_solver", "k_diffusion")
"""Families of which runs with noise are taken too, with the noise that they drew."""
KEPT_WITH_NOISE = ("final", "t_eval", "t_grid", "sigmas", "noise")
STATISTICS = ("lambda_grid", "l", "s", "b")
"""The arrays of DPM-Solver-v3's statistics, under the key that a case names."""
KEPT_ARRAYS = (
    "final", "t_eval", "sigma_eval", "sigmas", "timesteps", "window_begin_timesteps", "window_len",
)  # fmt: skip
SETTINGS = (
    "schedule", "algorithm_type", "method", "order", "variant", "solver_type", "skip_type",
    "steps", "lower_order_final", "denoise_to_zero", "t_end",
)  # fmt: skip
HERE = Path(__file__).parent


def settings(family: str, case: dict[str, Any]) -> list[tuple[str, str]]:
    flat = {"schedule": case["schedule"], **case["config"]}
    if TOGETHER[family] == 2:
        return [("function", case["source"]["function"]), *((k, str(v)) for k, v in flat.items())]
    return [(name, str(flat[name])) for name in SETTINGS if name in flat]


def supported(family: str, case: dict[str, Any]) -> bool:
    """Static tables, without noise but for `STOCHASTIC`; of the first three families those that
    name their method.
    """
    config = case["config"]
    if TOGETHER[family] == 2:
        noisy = "noise" in case["arrays"] and family not in STOCHASTIC
        return not noisy and "atol" not in config
    named = "method" in config or "variant" in config
    return named and config.get("method") != "adaptive" and config.get("variant") != "vary_coeff"


def covering(family: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Greedy cover of all pairs or triples of settings, cheapest runs first among equals."""
    size = TOGETHER[family]
    groups = {case["id"]: set(combinations(settings(family, case), size)) for case in cases}
    missing = set().union(*groups.values())
    chosen = set()
    while missing:
        best = max(cases, key=lambda case: (len(groups[case["id"]] & missing), -case["nfe"]))
        chosen.add(best["id"])
        missing -= groups[best["id"]]
    return [case for case in cases if case["id"] in chosen]


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **arrays)


def main(source: Path) -> None:
    for family in TOGETHER:
        if not (source / f"{family}.json").is_file():
            continue
        index = json.loads((source / f"{family}.json").read_text())
        arrays: dict[str, np.ndarray] = {}
        cases = covering(family, [c for c in index["cases"] if supported(family, c)])
        kept = KEPT_WITH_NOISE if family in STOCHASTIC else KEPT_ARRAYS
        with np.load(source / f"{family}.npz", allow_pickle=False) as stored:
            for case in cases:
                case["arrays"] = {k: v for k, v in case["arrays"].items() if k in kept}
                arrays |= {key: stored[key] for key in case["arrays"].values()}
                tables = (f"{case['config'].get('ems')}/{name}" for name in STATISTICS)
                arrays |= {key: stored[key] for key in tables if key in stored}
        text = json.dumps({**index, "extra": {}, "cases": cases}, separators=(",", ":"))
        (HERE / f"{family}.json").write_text(text.replace('{"id"', '\n{"id"') + "\n")
        write_arrays(HERE / f"{family}.npz", arrays)
        print(f"{family}: {len(cases)} of {len(index['cases'])} cases")
    if not (source / "problems.npz").is_file():
        return
    with np.load(source / "problems.npz", allow_pickle=False) as stored:
        wanted = ("x_T/", "exact/", "vp_discrete/")
        write_arrays(
            HERE / "problems.npz", {k: stored[k] for k in stored.files if k.startswith(wanted)}
        )
    (HERE / "model.json").write_text((source / "model.json").read_text().rstrip() + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

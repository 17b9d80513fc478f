"""Folders of records as a run would leave them, with numbers that are made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from logsnr.benchmarks.harness.files import save_tensors
from logsnr.benchmarks.harness.records import append, record_file

CONTENDERS: dict[str, tuple[dict[str, Any], float, float]] = {
    # name: options, error at 1 NFE, order
    "unipc": ({"order": 2}, 1.9, 2.1),
    "ipndm": ({}, 2.6, 2.3),
    "dpm-solver++": ({"order": 2}, 1.5, 1.7),
    "PlanScheduler": ({}, 1.7, 2.1),
    "UniPCMultistepScheduler": ({"use_karras_sigmas": True}, 2.0, 1.6),
    "DDIMScheduler": ({}, 1.2, 1.0),
    "DPMSolverMultistepScheduler": ({}, 1.9, 1.5),
}
NFE = (4, 6, 10, 20)
SEEDS = (0, 1, 2)
SAMPLES = 200
SIZE = 12


def problem(**changed: Any) -> dict[str, Any]:
    """The rest of the protocol."""
    said = {"weights": "0f3a", "guidance": 1.0, "dtype": "float32", "samples": SAMPLES}
    return said | {"fid": {"features": "face-feature FID", "statistics": "77aa"}} | changed


def states(seed: int) -> torch.Tensor:
    """Eight smooth colour images (8, 3, SIZE, SIZE)."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(8, 3, 4, 4, generator=rng)
    return torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear").clamp(-1, 1)


def write(
    folder: Path,
    *,
    model: str = "faces",
    contenders: Sequence[str] = tuple(CONTENDERS),
    nfe: Sequence[int] = NFE,
    seeds: Sequence[int] = SEEDS,
    pictures: bool = True,
    more: dict[str, Any] | None = None,
    **changed: Any,
) -> None:
    """Records of all contenders, and the converged solution, into ``folder``.

    changed : of the problem.  more : of every record.
    """
    path = record_file(folder)
    rng = torch.Generator().manual_seed(1)
    for seed in seeds:
        exact = states(seed)
        common = {"seed": seed, "model": model, "problem": problem(**changed)}
        common |= {"status": "ok", "note": None, "versions": {"torch": "2.13.0"}, **(more or {})}
        name = f"shards/reference-{seed}/0.safetensors"
        if pictures:
            save_tensors(folder / name, {"x": exact})
        reference = {"solver": "reference", "options": {"evaluations": [200, 150]}, "nfe": None}
        append(
            path,
            common | reference | {"error_bar": 1e-4, "fid": 2.1 + 0.02 * seed, "files": [name]},
        )
        for contender in contenders:
            options, error, order = CONTENDERS[contender]
            for count in nfe:
                near = error * count**-order * (1 + 0.1 * float(torch.randn(1, generator=rng)))
                noise = torch.randn(exact.shape, generator=rng)
                name = f"shards/{contender}-{count}-{seed}/0.safetensors"
                if pictures:
                    save_tensors(folder / name, {"x": exact + near * noise})
                measured = {
                    "rmse": near,
                    "rmse_median": 0.7 * near,
                    "psnr": -20 * torch.tensor(near / 2).log10().item(),
                    "fid": 2.1 + 60 * near**2 + 0.02 * float(torch.randn(1, generator=rng)),
                    "fid_real": 2.0,
                    "seconds": SAMPLES * 0.01 * count * (1.2 if contender[0].isupper() else 1.0),
                    "nfe_counted": float(count),
                }
                request = {"solver": contender, "options": options, "nfe": count}
                append(path, common | request | measured | {"files": [name] if pictures else []})

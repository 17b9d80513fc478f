"""One run of `sample_parallel` shared by all processes that torchrun started, or by this one.

    python parallel_devices.py --out one.safetensors
    torchrun --standalone --nproc-per-node 2 parallel_devices.py --out two.safetensors

Both files hold the same bits.
"""

from __future__ import annotations

import argparse

import torch
from safetensors.torch import save_file

from logsnr.benchmarks.embedded import NULL_LABEL, load_scheduler, load_unet
from logsnr.solvers import Denoiser, DiscreteVP, make_plan, sample_parallel
from logsnr.solvers.parallel import share
from logsnr.solvers.processes import ranks
from logsnr.solvers.requests import evaluator


def main() -> None:
    """Sample the embedded model on all ranks; rank 0 writes the result."""
    parser = argparse.ArgumentParser(description="sample the embedded model, shared over ranks")
    parser.add_argument("--out", required=True, help="where rank 0 writes the sample")
    parser.add_argument("--nfe", type=int, default=16)
    parser.add_argument("--tolerance", type=float, default=0.1)
    arguments = parser.parse_args()

    with ranks() as here:
        schedule = DiscreteVP(load_scheduler().alphas_cumprod)
        unet = load_unet(device=here.device)

        def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return unet(x, t, class_labels=torch.full((len(x),), NULL_LABEL, device=x.device))

        denoise = Denoiser(lambda x, t: network(x, t).sample, schedule)
        plan = make_plan("ddim", schedule, nfe=arguments.nfe)
        # The same start on every rank: from one seed, drawn on the CPU.
        x_T = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        x_T = x_T.to(here.device)

        evaluate = share(evaluator(denoise), here, plan, x_T)
        x0, stats = sample_parallel(
            denoise, x_T, plan, tolerance=arguments.tolerance, evaluate=evaluate
        )
        if here.rank == 0:
            save_file({"x0": x0.cpu()}, arguments.out)
            print(f"{here.size} ranks: {stats.sweeps} sweeps, {stats.evaluations} evaluations")


if __name__ == "__main__":
    main()

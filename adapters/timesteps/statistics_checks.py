"""Whether the statistics of DPM-Solver-v3 fit a run: its schedule, its nodes, its states."""

from __future__ import annotations

from logsnr.solvers import EMS, NoiseSchedule
from logsnr.solvers.grids import node_at
from logsnr.solvers.model_statistics.ems import check_event

from .layout import Layout


def check_fits(ems: EMS, schedule: NoiseSchedule, run: Layout) -> None:
    """ValueError unless the statistics are of ``schedule`` and cover the nodes of the run."""
    ems.fits(schedule)
    for k, node in enumerate(run.nodes):
        try:
            ems.fits(schedule, [node.lam])
        except ValueError as error:
            ends = [node_at(schedule, schedule.time(lam)) for lam in ems.lam[[0, -1]].tolist()]
            high, low = run.levels(ends, schedule)
            raise ValueError(
                f"node {k} of the run is at sigma={run.levels([node], schedule)[0]:.6g}, but ems "
                f"covers {high:.6g} to {low:.6g}: estimate it on the whole range of training, or "
                "choose other nodes (timestep_spacing, sigma_min, sigma_max, timesteps)"
            ) from error


def check_shape(ems: EMS, event: tuple[int, ...]) -> None:
    """ValueError unless the statistics fit states of shape (B, *event)."""
    try:
        check_event(ems.event, event)
    except ValueError as error:
        raise ValueError(
            f"ems holds statistics of shape {ems.event}, but the pipeline's states have {event}: "
            "those of single coordinates are for one resolution. Estimate them with "
            "granularity='channel', or 'scalar' where states are packed into tokens"
        ) from error

"""The statistics of DPM-Solver-v3 in a scheduler's config, and in the folder it is saved in.

A config is JSON, and diffusers hands it from one scheduler to the next. So what a config has is the
name of a file, and in memory that name carries the statistics (`EMSFile`): they go wherever the
config goes, and are written beside it when it is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from logsnr.solvers import EMS, NoiseSchedule
from logsnr.solvers.grids import node_at
from logsnr.solvers.model_statistics.ems import check_event

if TYPE_CHECKING:
    from ..timesteps.layout import Layout

# safetensors under another suffix: a folder with a *.safetensors file is one of weights to
# diffusers, which downloads no other file of it but its config.json.
FILE = "ems.sft"
_DOWNLOAD = (
    "cache_dir",
    "force_download",
    "local_dir",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
)


class EMSFile(str):
    """The name of the file beside a saved config that holds the statistics ``ems``."""

    ems: EMS

    def __new__(cls, ems: EMS) -> EMSFile:
        file = super().__new__(cls, FILE)
        file.ems = ems
        return file

    def __getnewargs__(self) -> tuple[EMS]:  # type: ignore[override]  # str has (str,)
        return (self.ems,)

    def __deepcopy__(self, memo: Any) -> EMSFile:
        # Nothing in it changes, it may be large, and plans are kept by its identity.
        return self


def carried(ems: Any) -> Any:
    """``ems`` as a config has it: statistics, or a path to them, become an `EMSFile`.

    A path to nothing stays what it is: only DPM-Solver-v3 needs it, see `ems_of`.
    """
    if isinstance(ems, EMS):
        return EMSFile(ems)
    if isinstance(ems, str | Path) and not isinstance(ems, EMSFile):
        path = Path(ems)
        inside = path / FILE  # a folder that a scheduler was saved in
        path = inside if inside.is_file() else path
        return EMSFile(EMS.load(path)) if path.exists() else str(ems)
    return ems


def ems_of(config: Mapping[str, Any]) -> EMS | None:
    """The statistics that a config carries; ValueError if it names what is not there."""
    ems = config.get("ems")
    if ems is None or isinstance(ems, EMSFile):
        return None if ems is None else ems.ems
    if isinstance(ems, str):
        raise ValueError(f"ems={ems!r} does not exist: need a file that EMS.save wrote, its folder")
    raise ValueError(f"ems={ems!r}: need an EMS, the path of its file or folder, or None")


def write_beside(config: Mapping[str, Any], folder: Any) -> None:
    """Write the statistics that a config carries into the folder that it is saved in."""
    ems = config.get("ems")
    if isinstance(ems, EMSFile):
        Path(folder).mkdir(parents=True, exist_ok=True)
        ems.ems.save(Path(folder) / ems)


def read_beside(config: Mapping[str, Any], source: Any, options: Mapping[str, Any]) -> Any:
    """``ems`` of a config that was read from ``source``, with the file that it names.

    Parameters
    ----------
    source : what diffusers read the config from: its file, a folder, or a repository of the Hub.
    options : of ``from_pretrained``: subfolder, revision, cache_dir and so on.
    """
    name = config.get("ems")
    if not isinstance(name, str):
        return name
    if Path(source).exists():
        root = Path(source).parent if Path(source).is_file() else Path(source)
        places = [root / (options.get("subfolder") or ""), root]
        path = next((place / name for place in places if (place / name).is_file()), None)
        return name if path is None else carried(path)
    known = {key: options[key] for key in _DOWNLOAD if key in options}
    try:
        return carried(hf_hub_download(str(source), filename=name, **known))
    except EntryNotFoundError:
        return name


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

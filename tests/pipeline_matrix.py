"""Every tiny pipeline with every registered solver, and beside diffusers' own schedulers.

    python tests/pipeline_matrix.py --markdown docs/support.md

measures the whole matrix (minutes) and writes the support table; test_pipeline_matrix.py runs a
selection of it and checks that the committed table lists the families and solvers that there are.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from tiny.family import Family
from tiny.refused import REFUSED, Refused
from tiny_pipelines import FAMILIES
from torch import Tensor

from logsnr.adapters import PlanScheduler
from logsnr.solvers import SOLVERS

NFE = 4
PARITY_NFE = 8
PARITY = 2e-5
"""How far from stock the largest difference may be, relative to the largest value: the noise of
stock's float32 tables, which random networks amplify."""


@dataclass(frozen=True)
class Cell:
    """One family with one solver: the latents, the scheduler's times, the network's calls."""

    latents: Tensor
    timesteps: list[float]
    calls: int


def ours(family: Family, solver: Any, **options: Any) -> PlanScheduler:
    """PlanScheduler for the pipeline's own config."""
    config = family.build().scheduler.config
    return PlanScheduler.from_config(config, solver=solver, **options)


def cell(family: Family, scheduler: Any, *, steps: int = NFE, **changed: Any) -> Cell:
    """Run the family with a scheduler."""
    torch.manual_seed(0)  # the noise of those that do not hand their generator to ``step``
    latents, told = family.run(scheduler, steps=steps, **changed)
    return Cell(latents, scheduler.timesteps.tolist(), len(told))


def check(family: Family, solver: Any, *, steps: int = NFE) -> str:
    """What is wrong with this cell: an error's text, or "" when it is as it should be.

    The run is finite, NFE is ``steps`` and not more, and a second run with the same scheduler
    object gives the same.
    """
    try:
        scheduler = ours(family, solver)
        first, second = cell(family, scheduler, steps=steps), cell(family, scheduler, steps=steps)
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    if not first.latents.isfinite().all():
        return "not finite"
    if len(first.timesteps) != steps or first.calls != steps * family.calls:
        return f"{len(first.timesteps)} timesteps, {first.calls} network calls for {steps} steps"
    if not torch.equal(first.latents, second.latents):
        return "a second run differs"
    return ""


def difference(family: Family, solver: str, *, steps: int = PARITY_NFE) -> float:
    """Largest difference from the stock scheduler of `Family.stock`, relative to its largest value.

    Stock is made from the pipeline's config with changes, and ours from that of stock.
    """
    name, changed = family.stock[solver]
    stock, ours = beside_stock(family, name, solver, changed)
    expected, _ = family.run(stock, steps=steps)
    result, _ = family.run(ours, steps=steps)
    return float((result - expected).abs().max() / expected.abs().max())


def beside_stock(
    family: Family, name: str, solver: Any, changed: dict[str, Any]
) -> tuple[Any, PlanScheduler]:
    """The scheduler ``name`` of diffusers in the family's pipeline, and ours on its grid."""
    stock = getattr(diffusers, name).from_config(family.build().scheduler.config, **changed)
    return stock, PlanScheduler.from_config(stock.config, solver=solver, keep_sampling=True)


def refusal(refused: Refused) -> str:
    """The error of a pipeline that cannot work."""
    try:
        refused.attempt()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "runs"


# The support table


def listed(family: Family) -> str:
    """The columns of the table that are not measured."""
    kind = family.kind + (f"; {family.note}" if family.note else "")
    return f"| {family.name} | `{family.pipeline}` | {kind} |"


def row(family: Family) -> str:
    wrong = {name: text for name in SOLVERS if (text := check(family, name))}
    ran = [name for name in SOLVERS if name not in wrong]
    cells = f"all {len(ran)}" if not wrong else f"{len(ran)} of {len(SOLVERS)}"
    reasons = "; ".join(f"{', '.join(who)}: {text}" for text, who in grouped(wrong).items())
    parity = ", ".join(
        f"`{family.stock[solver][0]}` {difference(family, solver):.0e}" for solver in family.stock
    )
    return f"{listed(family)} {cells}{': ' + reasons if reasons else ''} | {parity or '-'} |"


def grouped(wrong: dict[str, str]) -> dict[str, list[str]]:
    by_text: dict[str, list[str]] = {}
    for name, text in wrong.items():
        by_text.setdefault(" ".join(text.split())[:160], []).append(name)
    return by_text


def table() -> str:
    """The measured table."""
    head = [
        "| family | pipeline | prediction, schedule | solvers that ran | largest difference |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(row(family) for family in FAMILIES.values())])


def refused_table() -> str:
    head = ["| pipeline | why | error |", "|---|---|---|"]
    rows = [f"| `{r.pipeline}` | {r.why} | {refusal(r)} |" for r in REFUSED.values()]
    return "\n".join([*head, *rows])


def write(path: Path) -> None:
    """Replace what lies between the marks of the page by newly measured tables."""
    text = path.read_text()
    for mark, make in (("matrix", table), ("refused", refused_table)):
        begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{make()}\n\n{end}{after}"
    path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", type=Path, help="the page to write the tables into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    began = time.perf_counter()
    if options.markdown:
        write(options.markdown)
    else:
        print(table(), refused_table(), sep="\n\n")
    print(f"{len(FAMILIES)} families x {len(SOLVERS)} solvers, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

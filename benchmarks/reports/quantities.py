"""What a record may hold, how it is called, and which direction is better."""

from __future__ import annotations

import math
from dataclasses import dataclass

REAL = ("_real", "_scatter")
"""Keys with these endings hold what as many real samples score, as fid_real and kl_scatter."""


@dataclass(frozen=True)
class Quantity:
    """A number of a record.

    key : its name there.  title, unit : what a reader calls it.  better : -1 where less is better,
    1 where more is, 0 where neither.  meaning : one sentence.  log : whether ratios count.
    """

    key: str
    title: str
    better: int = 0
    meaning: str = ""
    unit: str = ""
    log: bool = False

    @property
    def heading(self) -> str:
        """Title with its unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def arrow(self) -> str:
        """The better direction as a sign."""
        return {-1: "↓", 1: "↑"}.get(self.better, "")


KNOWN = {
    quantity.key: quantity
    for quantity in (
        Quantity(
            "rmse",
            "RMSE",
            -1,
            "Root mean square distance to the converged solution of the same starts.",
            log=True,
        ),
        Quantity(
            "rmse_median",
            "median RMSE",
            -1,
            "Of the median sample: not decided by a few that end in another mode.",
            log=True,
        ),
        Quantity(
            "fid",
            "FID",
            -1,
            "Fréchet distance of features to those of the data set; compare equal counts only.",
            log=True,
        ),
        Quantity("kid", "KID", -1, "Kernel distance of features; unbiased, may be negative."),
        Quantity("precision", "precision", 1, "Share of samples within the data's manifold."),
        Quantity("recall", "recall", 1, "Share of the data within the samples' manifold."),
        Quantity("density", "density", 1, "Data balls around a sample, over their number k."),
        Quantity("coverage", "coverage", 1, "Share of the data whose ball has a sample."),
        Quantity("inception_score", "Inception score", 1, "Sure of each, unsure of all."),
        Quantity(
            "sliced_wasserstein",
            "sliced Wasserstein",
            -1,
            "Transport distance of projections to the data set.",
            log=True,
        ),
        Quantity("psnr", "PSNR", 1, "Of the RMSE, with the range of the data as peak.", "dB"),
        Quantity("rmse_worst", "worst RMSE", -1, "Of the worst sample.", log=True),
        Quantity("mean_error", "error of the mean", -1, "Over the data's deviation.", log=True),
        Quantity("covariance_error", "error of the covariance", -1, "Frobenius, relative."),
        Quantity("kl", "KL", -1, "Relative entropy to the exact distribution.", "nats", True),
        Quantity("shares", "KL of shares", -1, "Of a mixture's components.", "nats", True),
        Quantity("seconds", "time", -1, "Seconds a sample, the network included.", "s", True),
        Quantity("nfe_counted", "NFE counted", 0, "Evaluations of the network, as counted there."),
    )
}

COSTS = ("seconds", "nfe_counted")
BOOKKEEPING = ("nfe", "seed", "network_rows", "network_calls", "steps", "rounding", "error_bar")
"""Numbers in a record that are no results."""


def quantity(key: str) -> Quantity:
    """What is known of a key; of one that nobody knows, its name alone."""
    return KNOWN.get(key) or Quantity(key, key.replace("_", " "))


def ordered(keys: set[str]) -> list[Quantity]:
    """The quantities of these keys: known ones in their order, then the others by name."""
    known = [found for key, found in KNOWN.items() if key in keys]
    return known + [quantity(key) for key in sorted(keys - set(KNOWN))]


def short(value: float | None) -> str:
    """Three digits, for people; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    value = float(f"{value:.3g}") if abs(value) < 1000 else value
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e6):
        return f"{value:.2e}"
    if size >= 100 or value == round(value):
        return f"{value:.0f}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:.{digits}f}"


def with_spread(mean: float, deviation: float | None) -> str:
    """Mean ± deviation; the deviation to two digits and the mean to the same place."""
    if not deviation:
        return short(mean)
    place = max(0, 1 - math.floor(math.log10(deviation)))
    if place > 6 or abs(mean) >= 1e6:
        return f"{mean:.2e} ± {deviation:.0e}"
    return f"{mean:.{place}f} ± {deviation:.{place}f}"

"""Two warnings of torchmetrics that say nothing here: it keeps all features, one split is meant."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence them inside."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric .* will save all extracted features")
        warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom")
        yield

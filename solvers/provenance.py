"""Where numbers come from: the releases that computed them, and the files that hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def releases(packages: Iterable[str]) -> dict[str, str]:
    """The releases of the packages that are installed, without their local part."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package).split("+")[0]
        except PackageNotFoundError:
            continue
    return found


def file_digest(path: Path, size: int = 12) -> str:
    """So many hexadecimal digits that tell the contents of files apart."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:size]

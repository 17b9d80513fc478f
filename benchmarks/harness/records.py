"""JSON lines of measurements, safe against kills and against several writers.

A record is one line: the protocol (see `protocol`), ``status`` ("ok", "diverged" or "failed", with
a ``note``), metrics by their names (``rmse``, ``psnr``, ``fid``, ..), what it cost (``nfe_counted``
at the network, ``seconds``), ``files`` with the tensors kept beside it, ``versions``.

Every writer of a folder has a file of its own, ``records.jsonl`` or ``records.RANK.jsonl``; they
are merged when they are loaded, and of one measurement the record that was ``written`` last wins. A
line is appended by a single write under a lock of the file, so that two processes that share one
lose nothing either. A line that a killed process left unfinished is no record, and is cut off by
the next.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from logsnr.benchmarks.harness.protocol import Record, finite, identity
from logsnr.solvers.whole_files import write_whole

try:
    import fcntl
except ImportError:  # a system without file locks: one process a file is still safe
    fcntl = None  # type: ignore[assignment]

RECORDS = "records.jsonl"
STATUS = "status"
WRITTEN = "written"
"""When, in seconds since 1970: which of several writers' records of one measurement is the last."""
Damage = Callable[[str], None]
"""Told of each line that is no record: which it is, and why."""


def record_file(folder: Path, rank: int = 0) -> Path:
    """The file into which this writer appends."""
    return folder / (RECORDS if rank == 0 else f"records.{rank}.jsonl")


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line to the file, which is created with its folder where it does not exist.

    Numbers that are not finite become null. Raises OSError where the disk does not take the line;
    the file is then as it was.
    """
    identity(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(finite(record), allow_nan=False) + "\n").encode()
    with _alone(path) as file:
        end = _whole(file)
        if end != os.fstat(file).st_size:
            os.ftruncate(file, end)
        if os.write(file, line) < len(line):
            os.ftruncate(file, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def load(path: Path, keys: Sequence[str] = (), damage: Damage | None = None) -> dict[str, Record]:
    """The records of a file, or of all writers of a folder, by identity.

    An unfinished last line is left out, a missing file is empty.

    keys : what a record must have beside its protocol.
    damage : called for every other line that is no record, which is then left out. None raises
        ValueError naming the line.
    """
    found: dict[str, Record] = {}
    for file in record_files(path) if path.is_dir() else [path]:
        for name, record in _parsed(file, keys, damage) if file.exists() else ():
            if name not in found or record.get(WRITTEN, 0) >= found[name].get(WRITTEN, 0):
                found[name] = record
    return found


def mend(folder: Path, keys: Sequence[str], damage: Damage) -> None:
    """Take lines that are no records out of the files of a folder that no one else writes to.

    keys : what a record must have beside its protocol.
    damage : called for each of them.
    """
    for path in record_files(folder):
        bad: list[str] = []
        kept = [json.dumps(record) + "\n" for _, record in _parsed(path, keys, bad.append)]
        if bad:
            for text in bad:
                damage(text)
            write_whole(path, lambda part: part.write_text("".join(kept)))  # noqa: B023


def record_files(folder: Path) -> list[Path]:
    """The files of all writers, the first one's first."""
    others = (path for path in folder.glob("records.*.jsonl") if path.name != RECORDS)
    ranked = sorted(others, key=lambda path: (len(path.name), path.name))
    return [path for path in (folder / RECORDS, *ranked) if path.exists()]


def _parsed(path: Path, keys: Sequence[str], damage: Damage | None) -> Iterator[tuple[str, Record]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # a process was killed here
            try:
                record = json.loads(line)
                name = identity(record)
                missing = [key for key in keys if key not in record]
                if missing:
                    raise ValueError(f"record lacks {missing[0]!r}")
                _check(record)
            except (ValueError, TypeError) as error:
                text = f"{path}, line {number} is not a record: {error}"
                if damage is None:
                    raise ValueError(f"{text}; is it of another version? Then remove it") from error
                damage(text)
                continue
            yield name, record


def _check(record: Mapping[str, Any]) -> None:
    """ValueError for entries that are not of their kind."""
    files = record.get("files", [])
    kinds = {
        STATUS: isinstance(record.get(STATUS, ""), str),
        WRITTEN: isinstance(record.get(WRITTEN, 0), int | float),
        "files": isinstance(files, list) and all(isinstance(name, str) for name in files),
    }
    for name, right in kinds.items():
        if not right:
            raise ValueError(f"{name}={record[name]!r}")


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """The file opened for appending, with no other process in the same place."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)  # which unlocks it


def _whole(file: int, block: int = 1 << 16) -> int:
    """Where the last whole line ends. Of a file that ends so, one byte is read."""
    end = os.fstat(file).st_size
    if end == 0 or os.pread(file, 1, end - 1) == b"\n":
        return end
    while end > 0:
        start = max(0, end - block)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0

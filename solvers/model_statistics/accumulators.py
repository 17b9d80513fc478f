r"""Accumulators on disk: tables of records, one a node, and a journal that survives a kill.

Accumulators of every node would take (nodes x coordinates x 26) numbers of memory, so they live
in files that are read and written one record at a time. (Files, not memory maps: mapped pages
count as memory of the process.)

A `commit` writes the new record and the new state into one file, moves that file to its name,
which is atomic, and only then changes the table. Whatever moment the process is killed at, the
journal holds whole records and the state that belongs to them: opening the folder writes them
into their table once more, which changes nothing if they were there already. Records that lie
together are read and written together, a few MB at a time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = "logsnr-estimation-1"
_SETTINGS, _JOURNAL = "settings.json", "journal"

BLOCK = 2**22
"""Bytes of records that are held at a time."""

State = dict[str, int]


def block_size(shape: Sequence[int]) -> int:
    """How many records of ``shape`` are held at a time: at least one."""
    return max(1, BLOCK // (8 * math.prod(shape)))


class Records:
    """Tables of float64 records in ``folder`` with a state that is always consistent with them.

    Parameters
    ----------
    tables : name -> (number of records, *shape of a record).
    settings : JSON values that say what the folder belongs to.
    notes : more of them that are kept beside the settings, but need not agree.
    durable : False leaves the journal out, for a folder that is thrown away.

    Attributes
    ----------
    state : of the last commit; empty in a new folder.

    Raises ValueError naming the settings that differ if the folder belongs to something else, or
    the file that is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        tables: Mapping[str, tuple[int, ...]],
        settings: Mapping[str, Any],
        *,
        notes: Mapping[str, Any] | None = None,
        durable: bool = True,
    ):
        self.folder = Path(folder)
        self.tables = dict(tables)
        self.durable = durable
        self.state: State = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = read_settings(self.folder)
        if stored is not None:
            check_same(self.folder, stored, settings)
            self._check_sizes()
            self._recover()
            return
        if any(self.folder.iterdir()) and not self._started():
            raise ValueError(f"checkpoint={str(folder)!r}: need an empty folder or an estimation's")
        for name, shape in self.tables.items():
            with open(self._path(name), "wb") as file:
                file.truncate(8 * math.prod(shape))
        body = {"format": _FORMAT, **settings, **(notes or {})}
        self._replace(_SETTINGS, json.dumps(body, indent=1).encode())

    def read(self, table: str, index: int, count: int = 1) -> np.ndarray:
        """``count`` records of ``table`` from ``index`` on: zeros where none were written."""
        shape = self.tables[table][1:]
        size = math.prod(shape)
        values = np.fromfile(self._path(table), count=size * count, offset=8 * size * index)
        return values.reshape(count, *shape)

    def blocks(self, table: str) -> Iterator[np.ndarray]:
        """The records of ``table`` in order, a few MB at a time."""
        size = block_size(self.tables[table][1:])
        total = self.tables[table][0]
        return (self.read(table, k, min(size, total - k)) for k in range(0, total, size))

    def commit(self, table: str, index: int, records: np.ndarray, state: State) -> None:
        """Make ``records``, from ``index`` on, and ``state`` the present ones, both or neither."""
        if self.durable:
            head = json.dumps({"table": table, "index": index, "state": state}).encode()
            self._replace(_JOURNAL, head + b"\n", np.ascontiguousarray(records).data)
        self._write(table, index, records)
        self.state = state

    def _write(self, table: str, index: int, records: np.ndarray) -> None:
        with open(self._path(table), "r+b") as file:
            file.seek(8 * math.prod(self.tables[table][1:]) * index)
            file.write(np.ascontiguousarray(records).data)

    def _check_sizes(self) -> None:
        for name, shape in self.tables.items():
            path, size = self._path(name), 8 * int(np.prod(shape))
            if not path.exists() or path.stat().st_size != size:
                raise _damaged(path, f"it should have {size} bytes")

    def _recover(self) -> None:
        journal = self.folder / _JOURNAL
        if not journal.exists():
            return
        try:
            with open(journal, "rb") as file:
                head = json.loads(file.readline())
                shape = self.tables[head["table"]][1:]
                records = np.frombuffer(file.read(), dtype=np.float64).reshape(-1, *shape)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(journal, error) from error
        self._write(head["table"], head["index"], records)
        self.state = head["state"]

    def _path(self, table: str) -> Path:
        return self.folder / f"{table}.f64"

    def _started(self) -> bool:
        """Whether the folder holds nothing but what a start cut short left behind."""
        ours = {f"{name}.f64" for name in self.tables} | {f"{_SETTINGS}.new"}
        return all(path.name in ours for path in self.folder.iterdir())

    def _replace(self, name: str, *parts: Any) -> None:
        new = self.folder / f"{name}.new"
        with open(new, "wb") as file:
            for part in parts:
                file.write(part)
        os.replace(new, self.folder / name)


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(
        f"checkpoint: {path} is damaged ({why}); remove the folder {path.parent}, to begin anew"
    )


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What the folder says it belongs to; None if it is new. ValueError for another format."""
    path = folder / _SETTINGS
    if not path.exists():
        return None
    try:
        settings = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    if settings.pop("format", None) != _FORMAT:
        raise ValueError(f"checkpoint={str(folder)!r} is not of this version ({_FORMAT})")
    return settings


def check_same(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """ValueError naming the first setting in which a checkpoint differs from what is wanted."""
    for key, value in json.loads(json.dumps(wanted)).items():
        if stored.get(key) != value:
            raise ValueError(
                f"checkpoint={str(folder)!r} was made with {key}={stored.get(key)!r}, not "
                f"{key}={value!r}: use the same settings, or another folder"
            )

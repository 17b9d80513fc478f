r"""Accumulators on disk: tables of records, one a node, and a journal that survives a kill.

Accumulators of every node would take (nodes x coordinates x 26) numbers of memory, so they live
in files that are read and written one record at a time. (Files, not memory maps: mapped pages
count as memory of the process.)

A `commit` writes the new record and the new state into one file, moves that file to its name,
which is atomic, and only then changes the table. Whatever moment the process is killed at, the
journal holds a whole record and the state that belongs to it: opening the folder writes the
record into its table once more, which changes nothing if it was there already.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = "logsnr-estimation-1"
_SETTINGS, _JOURNAL = "settings.json", "journal"

State = dict[str, int]


class Records:
    """Tables of float64 records in ``folder`` with a state that is always consistent with them.

    Parameters
    ----------
    tables : name -> (number of records, *shape of a record).
    settings : JSON values that say what the folder belongs to.
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
                file.truncate(8 * int(np.prod(shape)))
        body = {"format": _FORMAT, **settings}
        self._replace(_SETTINGS, json.dumps(body, indent=1).encode())

    def read(self, table: str, index: int) -> np.ndarray:
        """Record ``index`` of ``table``: zeros if it was never written."""
        shape = self.tables[table][1:]
        count = int(np.prod(shape))
        values = np.fromfile(self._path(table), count=count, offset=8 * count * index)
        return values.reshape(shape)

    def rows(self, table: str) -> Iterator[np.ndarray]:
        """The records of ``table`` in order, one at a time."""
        return (self.read(table, index) for index in range(self.tables[table][0]))

    def commit(self, table: str, index: int, record: np.ndarray, state: State) -> None:
        """Make ``record`` and ``state`` the present ones, both or neither."""
        if self.durable:
            head = json.dumps({"table": table, "index": index, "state": state}).encode()
            self._replace(_JOURNAL, head + b"\n", np.ascontiguousarray(record).data)
        self._write(table, index, record)
        self.state = state

    def _write(self, table: str, index: int, record: np.ndarray) -> None:
        with open(self._path(table), "r+b") as file:
            file.seek(record.nbytes * index)
            file.write(np.ascontiguousarray(record).data)

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
                record = np.frombuffer(file.read(), dtype=np.float64).reshape(shape)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(journal, error) from error
        self._write(head["table"], head["index"], record)
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

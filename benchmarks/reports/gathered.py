"""Records of one folder or several, sorted into settings within which they may be compared.

Two measurements are compared only if the rest of their protocol agrees: the model and the problem
(weights, schedule, guidance, dtype, device, ends, samples, ...). What the contenders are, their
evaluations and seeds is what is compared. Each set that agrees is a `Setting`, and `disagreements`
says in what settings differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logsnr.benchmarks.harness.protocol import Record, identity, key_of, text_of
from logsnr.benchmarks.harness.records import load, record_files

REFERENCE = "reference"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Entry:
    """A record and the folder in which its files are."""

    record: Record
    folder: Path


@dataclass
class Setting:
    """Measurements that agree in all but contender, evaluations and seed.

    letter : what the report calls it.  facts : model and problem, flat.  entries : of contenders.
    references : of the converged solutions, by seed.
    """

    letter: str
    model: str
    facts: dict[str, str]
    entries: list[Entry] = field(default_factory=list)
    references: dict[Any, Entry] = field(default_factory=dict)

    @property
    def samples(self) -> int | None:
        """Of each seed; None where the protocol does not say."""
        text = self.facts.get("problem.samples", "")
        return int(text) if text.isdigit() and int(text) > 0 else None

    @property
    def name(self) -> str:
        """Letter and model."""
        return f"{self.letter}: {self.model}"


@dataclass(frozen=True)
class Gathered:
    """All settings, and notes on what could not be read."""

    settings: list[Setting]
    notes: list[str]


def gather(folders: Sequence[Path]) -> Gathered:
    """The records of all folders.

    Raises ValueError for a folder that is not there, or has no record; lines that are no records
    are left out, with a note.
    """
    notes: list[str] = []
    entries: list[Entry] = []
    for folder in folders:
        entries += _read(Path(folder), notes)
    settings: dict[str, Setting] = {}
    seen: dict[str, Entry] = {}
    for entry in entries:
        record, what = entry.record, identity(entry.record)
        if record["solver"] != REFERENCE and type(record["nfe"]) is not int:
            notes.append(f"{entry.folder}: {record['solver']} has nfe={record['nfe']!r}, left out")
            continue
        if what in seen:
            notes.append(
                f"{entry.folder} and {seen[what].folder} both have {record['solver']}, "
                f"{record['nfe']} NFE, seed {record['seed']}: the first is shown"
            )
            continue
        seen[what] = entry
        if record["solver"] == REFERENCE:
            continue
        protocol = {key: record[key] for key in ("model", "problem")}
        key = text_of(protocol)
        if key not in settings:
            letter = _letter(len(settings))
            settings[key] = Setting(letter, _plain(record["model"]), dict(leaves(protocol)))
        settings[key].entries.append(entry)
    references = [entry for entry in seen.values() if entry.record["solver"] == REFERENCE]
    for setting in settings.values():
        setting.references.update(_references(setting, references))
    return Gathered(list(settings.values()), notes)


def _references(setting: Setting, references: Sequence[Entry]) -> dict[Any, Entry]:
    """By seed, the converged solutions that the setting's distances are taken to.

    A record names its own in ``against``. One that names none has the solution of its problem,
    where the evaluations of the reference are no part of what is solved.
    """
    named = {entry.record.get("against") for entry in setting.entries} - {None}
    problem = _without_reference(setting.entries[0].record)
    found: dict[Any, Entry] = {}
    for entry in references:
        record = entry.record
        if key_of(record) in named if named else _without_reference(record) == problem:
            found.setdefault(record["seed"], entry)
    return found


def _without_reference(record: Record) -> str:
    problem = record["problem"]
    if isinstance(problem, Mapping):
        problem = {key: value for key, value in problem.items() if key != REFERENCE}
    return text_of([record["model"], problem])


def disagreements(settings: Sequence[Setting]) -> list[tuple[str, list[str]]]:
    """(part of the protocol, its value in each setting) where settings differ."""
    names = list(dict.fromkeys(name for setting in settings for name in setting.facts))
    rows = [(name, [setting.facts.get(name, "absent") for setting in settings]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of all entries of nested mappings."""
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from leaves(entry, f"{name}.{key}" if name else str(key))
    else:
        yield name, _plain(value)


def versions(entries: Iterable[Entry]) -> dict[str, list[str]]:
    """Releases of each package that the records name."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        named = entry.record.get("versions")
        for package, version in named.items() if isinstance(named, Mapping) else ():
            found.setdefault(str(package), set()).add(str(version))
    return {package: sorted(values) for package, values in sorted(found.items())}


def _read(folder: Path, notes: list[str]) -> list[Entry]:
    if not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r}: need a folder with records")
    if not record_files(folder):
        raise ValueError(f"folder={str(folder)!r} has no records: need its records.jsonl")
    damage: list[str] = []
    records = load(folder, damage=damage.append)
    if not records:
        why = f": {damage[0]}" if damage else ""
        raise ValueError(f"folder={str(folder)!r} has no records{why}")
    notes += damage
    return [Entry(record, folder) for record in records.values()]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else text_of(value)


def _letter(index: int) -> str:
    first, rest = divmod(index, len(LETTERS))
    return LETTERS[rest] if first == 0 else f"{LETTERS[rest]}{first}"

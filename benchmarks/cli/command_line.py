"""What the commands share: options in, progress while they run, one line when they fail.

Light on purpose: the help of a command imports this and nothing that computes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

Update = Callable[[float, str], None]
"""Called with the amount of work that is done, and what is being done."""

EVERY = 10.0
"""Seconds between two lines of progress, at least, where there is no terminal."""


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers written as in 0-3,7; ValueError naming the option."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise ValueError(f"{name}={text!r}: need whole numbers, as in 5,8,10 or 0-3") from None
        if high < low:
            raise ValueError(f"{name}={text!r}: {part!r} is an empty range")
        found += range(low, high + 1)
    return tuple(found)


def json_object(text: str) -> Mapping[str, Any]:
    """The arguments of a call that are given as JSON; ValueError for anything but an object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"call_args={text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"call_args={text!r}: need a JSON object, as in '{{\"eta\": 0}}'")
    return value


def json_value(text: str) -> Any:
    """The value of an option written as key=value: JSON, Python's True and False, or a word."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return text


def folder(out: Path) -> None:
    """Make the folder of the results; ValueError unless files can be written into it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r}: need a folder, or a path that does not exist")
    try:
        out.mkdir(parents=True, exist_ok=True)
        _try_writing(out / ".logsnr")
    except OSError as error:
        raise ValueError(f"out={str(out)!r} cannot be written: {error.strerror}") from error


def file(path: Path | None, option: str = "out") -> None:
    """Make the folder of a file to come; ValueError unless it can be written."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option}={str(path)!r} is a folder: need a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _try_writing(path.with_name(f".{path.name}"))
    except OSError as error:
        raise ValueError(f"{option}={str(path)!r} cannot be written: {error.strerror}") from error


def _try_writing(path: Path) -> None:
    path.touch()
    path.unlink(missing_ok=True)  # another rank may have tried the same


@contextmanager
def options(names: Mapping[str, str] | None = None) -> Iterator[None]:
    """A ValueError inside is one of the option that its text names first (exit status 2).

    names : of options that are not called as the argument, as {"window": "windows"}.
    """
    try:
        yield
    except ValueError as error:
        argument = str(error).split("=", 1)[0].split(":", 1)[0]
        option = (names or {}).get(argument, argument).replace("_", "-")
        written = option if option.isupper() else f"--{option}"  # an argument, an option
        hint = written if argument.isidentifier() else None
        raise typer.BadParameter(str(error), param_hint=hint) from error


@contextmanager
def working(kept: Path | None = None) -> Iterator[None]:
    """What goes wrong inside in a way that a user can mend ends the command with one line.

    That is a file that cannot be read or written, a record that is damaged, an interruption
    (exit status 130).

    kept : the folder in which finished work waits for the same command, if it is kept.
    """
    try:
        yield
    except KeyboardInterrupt:
        rest = "nothing is kept" if kept is None else f"what has finished is kept in {kept}; "
        again = "" if kept is None else "the same command goes on from there"
        _fail(f"Interrupted: {rest}{again}.", status=130)
    except (OSError, ValueError) as error:
        _fail(f"Error: {error}")


def _fail(text: str, status: int = 1) -> None:
    typer.secho(" ".join(text.split()), fg="red", err=True)
    raise typer.Exit(status)


@contextmanager
def progress(total: float, unit: str) -> Iterator[Update]:
    """Progress on standard error: a bar on a terminal, else a line now and then.

    Both say how much of the total is done, what is being done, and the time that is left.
    """
    if sys.stderr.isatty():
        with _bar(total, unit) as update:
            yield update
    else:
        yield _lines(total, unit)


@contextmanager
def _bar(total: float, unit: str) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=round(total))
        yield lambda done, text: bar.update(task, completed=round(done), description=text)


def _lines(total: float, unit: str) -> Update:
    began = last = time.monotonic()
    first: float | None = None  # what was there already costs no time

    def update(done: float, text: str) -> None:
        nonlocal first, last
        first = done if first is None else first
        now = time.monotonic()
        if now - last < EVERY and done < total:
            return
        last = now
        rate = (done - first) / (now - began)
        left = f", {clock((total - done) / rate)} left" if rate > 0 else ""
        elapsed = clock(now - began)
        print(f"{done:.0f} of {total:.0f} {unit}, {elapsed}{left}: {text}", file=sys.stderr)

    return update


def clock(seconds: float) -> str:
    """Seconds as 0:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def wrote(out: Path, names: Sequence[str]) -> None:
    """List the files that were written into the folder."""
    for name in names:
        if (out / name).exists():
            typer.echo(f"  {out / name}")

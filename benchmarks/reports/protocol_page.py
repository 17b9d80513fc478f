"""The parts of the page that say how it was measured: protocol, what differs, what was left out."""

from __future__ import annotations

from html import escape

from logsnr.benchmarks.reports import tables
from logsnr.benchmarks.reports.gathered import Gathered, Setting, disagreements, versions
from logsnr.benchmarks.reports.rows import Table


def facts(table: Table) -> list[list[str]]:
    """(name, value) of all that the records of a setting agree on, seeds, and releases."""
    setting = table.setting
    found = [[name.removeprefix("problem."), text] for name, text in setting.facts.items()]
    found.append(["seeds", ", ".join(map(str, table.seeds))])
    return found + [[name, " and ".join(values)] for name, values in _releases(setting).items()]


def failures(table: Table) -> list[list[str]]:
    """(contender and NFE, what became of a seed) of all runs without samples."""
    return [
        [f"{row.contender}, {row.nfe} NFE", text] for row in table.rows for text in row.failures
    ]


def differences(gathered: Gathered) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of what settings do not agree on."""
    rows = [
        [name.removeprefix("problem."), *values]
        for name, values in disagreements(gathered.settings)
    ]
    return ["protocol", *(setting.letter for setting in gathered.settings)], rows


def protocol_html(table: Table) -> str:
    """The protocol of a setting, the options of its contenders, and what failed."""
    mixed = [name for name, values in _releases(table.setting).items() if len(values) > 1]
    warning = (
        f'<p class="about">The records were made with different releases of {", ".join(mixed)}: '
        "times, and the last digits, may differ for that alone.</p>"
        if mixed
        else ""
    )
    keys = list(dict.fromkeys(key for options in table.options.values() for key in options))
    options = [
        [name, *(table.options[name].get(key, "") for key in keys)] for name in table.contenders
    ]
    failed = failures(table)
    return (
        '<h3>Protocol</h3><p class="about">What all records of this setting agree on. NFE are '
        "evaluations of the network, counted there; guidance, which may call it twice, is not "
        f"counted twice.</p>{warning}{tables.plain(facts(table))}"
        '<details class="more"><summary>Options of every contender</summary>'
        f"{tables.plain(options, ['contender', *keys])}</details>"
        + (f"<h3>Runs without samples</h3>{tables.plain(failed)}" if failed else "")
    )


def differences_html(gathered: Gathered) -> str:
    """In what settings differ; nothing for one setting."""
    if len(gathered.settings) < 2:
        return ""
    head, rows = differences(gathered)
    return (
        "<h2>Settings that are not compared</h2>"
        '<p class="about">Records are compared only where their protocol agrees. These '
        f"{len(gathered.settings)} settings differ in:</p>{tables.plain(rows, head)}"
    )


def notes_html(gathered: Gathered) -> str:
    """What could not be read; nothing if all could."""
    if not gathered.notes:
        return ""
    lines = "".join(f"<li>{escape(note)}</li>" for note in gathered.notes)
    return f'<h2>Left out</h2><ul class="notes">{lines}</ul>'


def _releases(setting: Setting) -> dict[str, list[str]]:
    return versions([*setting.entries, *setting.references.values()])

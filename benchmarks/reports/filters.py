"""What of the page is shown: setting, metric, evaluations, contenders. It is the legend, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from logsnr.benchmarks.reports.charts import swatch
from logsnr.benchmarks.reports.quantities import Quantity
from logsnr.benchmarks.reports.rows import Table


def filters_html(
    found: Sequence[Table],
    names: Sequence[str],
    styles: Mapping[str, int],
    qualities: Sequence[Quantity],
) -> str:
    """The box of filters; `page.js` obeys it."""
    ours = {name: table.ours[name] for table in found for name in table.contenders}
    nfe = sorted({value for table in found for value in table.nfe})
    settings = [_chip("setting", t.setting.letter, escape(t.setting.name)) for t in found]
    metrics = [
        _chip("metric", q.key, f"{escape(q.title)} {q.arrow}", kind="radio", on=i == 0)
        for i, q in enumerate(qualities)
    ]
    contenders = [
        _chip(
            "solver",
            name,
            swatch(styles[name], ours[name]) + escape(name),
            more=f' data-ours="{int(ours[name])}"',
            light=name,
        )
        for name in names
    ]
    groups = {
        "Setting": settings if len(settings) > 1 else [],
        "Metric": metrics,
        "NFE": [_chip("nfe", str(value), str(value)) for value in nfe],
        "Contenders": [*contenders, *_picks(both=len(set(ours.values())) > 1)],
    }
    fields = "".join(
        f'<fieldset><legend>{text}</legend><div class="row">{"".join(chips)}</div></fieldset>'
        for text, chips in groups.items()
        if chips
    )
    return f'<details class="filters" open><summary>Show</summary>{fields}</details>'


def _picks(*, both: bool) -> list[str]:
    """Links that choose many contenders at once."""
    picks = {"all": "all", "none": "none"}
    if both:
        picks |= {"ours": "logsnr", "theirs": "others"}
    return [
        f'<button type="button" class="pick" data-pick="{pick}">{text}</button>'
        for pick, text in picks.items()
    ]


def _chip(
    name: str,
    value: str,
    text: str,
    *,
    kind: str = "checkbox",
    on: bool = True,
    more: str = "",
    light: str | None = None,
) -> str:
    """A choice; ``text`` is HTML. light : the contender whose lines it lifts out."""
    checked = " checked" if on else ""
    over = "" if light is None else f' data-light="{escape(light)}"'
    return (
        f'<label class="chip {kind}"{over}><input type="{kind}" name="{name}" '
        f'value="{escape(value)}"{checked}{more}>{text}</label>'
    )

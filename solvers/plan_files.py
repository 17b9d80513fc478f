"""Plans as files: safetensors, with the table as JSON in its header and no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .node import Coefficient, Node, Target
from .noise_terms import Noise
from .rows import Row
from .scalar import plain

if TYPE_CHECKING:
    from .plan import Plan

_FIRST, _SECOND = "logsnr-plan-1", "logsnr-plan-2"
"""The second may have nodes with times of the network's own, and clocks and moments of noise."""


def save_plan(plan: Plan, path: str | Path) -> None:
    """See `Plan.save`."""
    body, tensors = content(plan)
    save_file(tensors, path, metadata={"plan": json.dumps(body)})


def content(plan: Plan) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file of the plan holds: the table as JSON values, and the tensors beside it."""
    tensors: dict[str, Tensor] = {}

    def encode(value: Coefficient) -> Any:
        if not isinstance(value, Tensor):
            return value
        name = f"coefficient{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}

    rows = [
        {
            "node": _node(row.node),
            "states": [(j, encode(c)) for j, c in row.states],
            "outputs": [(j, encode(c)) for j, c in row.outputs],
            "target": None if row.target is None else [encode(c) for c in row.target],
            "offset": encode(row.offset),
            "noise": [_noise(term) for term in row.noise],
        }
        for row in plan.rows
    ]
    plain_rows = all(
        len(_node(row.node)) == 3 and all(len(_noise(term)) == 3 for term in row.noise)
        for row in plan.rows
    )
    body = {
        "format": _FIRST if plain_rows else _SECOND,
        "solver": plan.solver,
        "options": dict(plan.options),
        "consistent": plan.consistent,
        "rows": rows,
    }
    nodes = [_node(row.node)[:3] for row in plan.rows]
    tensors["nodes"] = torch.tensor(nodes, dtype=torch.float64)
    return body, tensors


def load_plan(path: str | Path) -> tuple[tuple[Row, ...], str, dict[str, Any], bool]:
    """The arguments of `Plan` for the file; see `Plan.load`."""
    try:
        opened = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"path={str(path)!r} is not a saved plan: {error}") from error
    with opened as file:
        body = json.loads((file.metadata() or {}).get("plan", "{}"))
        if body.get("format") not in (_FIRST, _SECOND):
            raise ValueError(f"path={str(path)!r} is not a saved plan ({_FIRST} or {_SECOND})")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return arguments(body, tensors)


def arguments(
    body: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[tuple[Row, ...], str, dict[str, Any], bool]:
    """The arguments of `Plan` for what `content` gave."""

    def decode(value: Any) -> Coefficient:
        return tensors[value["tensor"]] if isinstance(value, dict) else float(value)

    rows = tuple(
        Row(
            node=Node(*row["node"]),
            states=tuple((j, decode(c)) for j, c in row["states"]),
            outputs=tuple((j, decode(c)) for j, c in row["outputs"]),
            target=None if row["target"] is None else Target(*map(decode, row["target"])),
            offset=decode(row["offset"]),
            noise=tuple(Noise(*entry) for entry in row["noise"]),
        )
        for row in body["rows"]
    )
    return rows, body["solver"], body["options"], body["consistent"]


def _node(node: Node) -> list[float | None]:
    """The node as numbers, without the times that are not there."""
    listed = [None if value is None else plain(value) for value in node]
    return listed if node[3:] != (None, None) else listed[:3]


def _noise(term: Noise) -> list[Any]:
    """The term without what is as it mostly is."""
    listed = [*map(plain, term[:3]), term.clock, term.moment]
    return listed if tuple(listed[3:]) != Noise(1.0, 0.0, 1.0)[3:] else listed[:3]

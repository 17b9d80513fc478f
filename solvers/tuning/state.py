"""The state of a fit on disk: written whole or not at all, and read by the same fit alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "logsnr-tuning-1"


class Checkpoint:
    """What was found so far, by name: tensors, and JSON values.

    Parameters
    ----------
    path : of the file, or None for a fit that is not kept.
    settings : JSON values that name the fit; a file of another one is a ValueError.
    seconds : between two writings, at least.
    """

    def __init__(self, path: str | Path | None, settings: dict[str, Any], seconds: float):
        self.path = None if path is None else Path(path)
        self.settings = json.loads(json.dumps(settings))
        self.seconds = seconds
        self.tensors: dict[str, Tensor] = {}
        self.values: dict[str, Any] = {}
        self.written = time.monotonic()
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                body = json.loads((file.metadata() or {}).get("tuning", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint={str(path)!r} is no checkpoint of a fit") from error
        if body.get("format") != FORMAT:
            raise ValueError(f"checkpoint={str(path)!r} is no checkpoint of a fit ({FORMAT})")
        for name, value in self.settings.items():
            if body["settings"].get(name) != value:
                raise ValueError(
                    f"checkpoint={str(path)!r} is of another fit: {name} was "
                    f"{body['settings'].get(name)!r}, is {value!r}"
                )
        tensors.pop("", None)
        self.tensors, self.values = tensors, body["values"]

    def save(self, *, now: bool = False) -> None:
        """Write the file, unless the last writing is less than ``seconds`` ago."""
        if self.path is None or not (now or time.monotonic() - self.written >= self.seconds):
            return
        body = {"format": FORMAT, "settings": self.settings, "values": self.values}
        tensors = {name: value.contiguous() for name, value in self.tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        save_file(tensors or {"": torch.zeros(0)}, beside, metadata={"tuning": json.dumps(body)})
        os.replace(beside, self.path)
        self.written = time.monotonic()

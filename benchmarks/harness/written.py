"""Text of the command line taken apart: entries at commas, options at colons, values as JSON.

Within brackets, braces and double quotes a comma or colon is part of the value:
``edm=my_module:load:shape=[3,32,32]``, ``faces:device="cuda:0"``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OPEN, CLOSE, QUOTE = "[{", "]}", '"'


def split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand outside of brackets, braces and quotes."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        if character == QUOTE:
            quoted = not quoted
        elif not quoted:
            depth += (character in OPEN) - (character in CLOSE)
            if character == separator and depth <= 0:
                parts.append("")
                continue
        parts[-1] += character
    return [part.strip() for part in parts]


def unquoted(text: str) -> str:
    """The text without the quotes around it, if it has any."""
    whole = len(text) > 1 and text.startswith(QUOTE) and text.endswith(QUOTE)
    return text[1:-1] if whole else text


def option_value(text: str) -> Any:
    """The value of an option written as key=value: JSON, or a word."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except json.JSONDecodeError:
        return text


def importable(*folders: Path) -> None:
    """Let modules in these folders be imported, after all that is installed."""
    for folder in folders:
        path = str(folder.resolve())
        if path not in sys.path:
            sys.path.append(path)

"""The config of a scheduler as one store.

diffusers' FrozenDict keeps attributes and items apart, and is not frozen: what is written to one is
not seen in the other. Its schedulers read attributes, its pipelines and ``from_config`` items. In a
`Config` both are the same, and whoever keeps something that was made from it can tell by its
``edition`` that a key has been set since.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from diffusers.configuration_utils import FrozenDict

from .carried_files import CARRIED, carried

NO_KEYS: frozenset[str] = frozenset()


class Edition:
    """A state of a config, that of its copies too; another one after every key that is set.

    made : what was made of it, and lives as long as it does.
    """

    def __init__(self) -> None:
        self.made: OrderedDict[Any, Any] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return Edition, ()

    def __deepcopy__(self, memo: Any) -> Edition:
        return self


class Config(FrozenDict):
    """Keys that can be read and set as attributes and as items alike.

    Parameters
    ----------
    values : the keys it begins with.
    own : the keys that its scheduler reads, which are those that can be set.

    Attributes
    ----------
    edition : tells whether a key was set since.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, own: Collection[str] = NO_KEYS):
        OrderedDict.__init__(self, values or {})  # by __setitem__
        self.__dict__.update(own=frozenset(own), edition=Edition())

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy is of the same edition.
        return _restored, (dict(self), self.own, self.edition)

    def __eq__(self, other: object) -> bool:
        # diffusers' own notes on a config (its file, which keys are defaults) are none of its keys.
        return isinstance(other, Mapping) and _described(self) == _described(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    @property
    def containers(self) -> list[Any]:
        """The values that can change without a key being set: lists, the mapping of the solver."""
        kept = self.__dict__.get("_containers")
        if kept is None or kept[0] is not self.edition:
            values = (value for key, value in self.items() if not key.startswith("_"))
            found = [value for value in values if isinstance(value, list | dict)]
            self.__dict__["_containers"] = kept = (self.edition, found)
        return kept[1]

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"the config has no key {name!r}") from error

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        own = self.__dict__.get("own", NO_KEYS)  # a dict that is being filled has none
        if own and name not in own and not name.startswith("_"):
            raise ValueError(
                f"{name}={value!r} is not a key that this scheduler reads; its keys are "
                f"{', '.join(sorted(own))}"
            )
        OrderedDict.__setitem__(self, name, carried(name, value) if name in CARRIED else value)
        self.__dict__["edition"] = Edition()
        unsaid = self.get("_use_default_values", ())
        if name in unsaid:
            self["_use_default_values"] = [key for key in unsaid if key != name]


def _restored(values: Mapping[str, Any], own: Collection[str], edition: Edition) -> Config:
    config = Config(values, own)
    config.__dict__["edition"] = edition
    return config


def as_one(
    config: Mapping[str, Any], defaults: Mapping[str, Any], settled: Collection[str] = ()
) -> dict[str, Any]:
    """What the config of a diffusers scheduler says, where its two stores may differ.

    Of two values the one that was set counts: the other is the default of the scheduler's class
    (``defaults``), which the config names as such. ValueError where that does not tell, except for
    keys that are ``settled`` elsewhere.
    """
    said = dict(config)
    unsaid = set(said.get("_use_default_values", ()))
    one_store = isinstance(config, Config) or not isinstance(config, FrozenDict)
    for key, attribute in () if one_store else vars(config).items():
        item = said.get(key)
        if key in settled or key.startswith("_") or (key in said and same(item, attribute)):
            continue
        default = key in unsaid and key in defaults
        if key not in said or (default and same(item, defaults[key])):
            said[key] = attribute
        elif not (default and same(attribute, defaults[key])):
            raise ValueError(
                f"config has {key}={attribute!r} as attribute and {item!r} as item, because one "
                f"was set after it was made: say which is meant, {key}=..."
            )
    if unsaid:
        still = [k for k in unsaid if k not in defaults or same(said.get(k), defaults[k])]
        said["_use_default_values"] = still
    return said


def _described(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def same(one: Any, other: Any) -> bool:
    """Whether two values of a key are equal, arrays as a whole."""
    return one is other or bool(np.array_equal(np.asarray(one), np.asarray(other)))

"""The part of a scheduler that has a config: taken over, set, saved, handed back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from logsnr.solvers import SOLVERS
from logsnr.solvers.names import also_named

from .carried_files import CARRIED, read_beside, write_beside
from .checks import OTHER_NAMES, without_implied
from .description import Description, described
from .foreign import is_own, of_the_model, say, say_without_effect, with_habits
from .given_plan import without_decided
from .known_keys import check_known, defaults, model_said, said_only, unsaid
from .spacing_keys import one_grid
from .stock_classes import REPLACED, class_defaults, replaceable_class, stock_scheduler, swappable
from .store import Config, as_one


class Configured(SchedulerMixin, ConfigMixin):
    """A scheduler that reads its config as it is when a run is laid out."""

    _compatibles = list(REPLACED)
    _described: Description | None = None

    if TYPE_CHECKING:
        num_inference_steps: int | None

        def _hear_tables(self) -> None: ...

    @classmethod
    @also_named(OTHER_NAMES)
    def from_config(
        cls,
        config: Any = None,
        return_unused_kwargs: bool = False,
        keep_sampling: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The scheduler for the config of another one, with ``kwargs`` instead of its values.

        What the config of a scheduler of diffusers says about the model is taken over. Its grid,
        its order, its last steps and its noise are not, unless ``keep_sampling`` says so: they are
        ours to choose, and yours as keywords. A log line names what is not followed.

        Raises ValueError for a keyword that no scheduler has, and for the config of a scheduler
        whose place cannot be taken: LCM, consistency models, Stable Cascade and others.
        """
        if isinstance(config, SchedulerMixin):
            raise ValueError(f"config is a {type(config).__name__}: give its .config")
        if isinstance(config, Mapping):
            if not return_unused_kwargs:
                check_known(kwargs, frozenset(defaults(cls)), cls._get_compatibles(), config)
            own, origin = is_own(config, cls.__name__), None
            if not own and (origin := replaceable_class(config)) is not None:
                kwargs.setdefault("stock_class", origin)
            config = as_one(config, class_defaults(config), settled=kwargs)
            if own:
                config = model_said(config)
            elif keep_sampling:
                config = with_habits(config, kwargs, origin)
            else:
                config = of_the_model(config, kwargs, origin)
            config = without_implied(one_grid(config, kwargs), kwargs)
            config = without_decided(config, kwargs)
        made = super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        say_without_effect((made[0] if isinstance(made, tuple) else made).config, kwargs)
        return made

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers; with the statistics and the plan that the config names."""
        loaded = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for key in CARRIED:
            if key in config:
                config[key] = read_beside(config, key, pretrained_model_name_or_path, kwargs)
        return loaded

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in diffusers; with the statistics and the plan beside the config."""
        write_beside(self.config, save_directory)
        super().save_config(save_directory, push_to_hub, **kwargs)

    @property
    def compatibles(self) -> list[type]:
        """The classes of diffusers that this very config can be swapped with, there and back."""
        return swappable(self, defaults(type(self)))

    def to_stock(self) -> Any:
        """A scheduler of diffusers' own with this config: of the class that it came from.

        For pipelines that are to be used where this package is not installed. A config that came
        from none gives the class nearest to its solver. A plan stays here: the log says so.
        """
        told, solver = self._description, self._description.solver.name
        given = told.plan or told.cards
        if given is not None:
            say(
                f"to_stock: no scheduler of diffusers runs plan={given!r}; this one has its own "
                "rule"
            )
        if told.plan is not None and told.plan.solver in SOLVERS:
            solver = told.plan.solver
        return stock_scheduler(self.config, defaults(type(self)), solver)

    def to_json_string(self) -> str:
        """The config as JSON: what describes the model, and what was set to other than defaults."""
        return said_only(super().to_json_string(), unsaid(self.config, defaults(type(self))))

    def __setattr__(self, name: str, value: Any) -> None:
        # diffusers reads a key of the config also as an attribute of the scheduler.
        if name in _keys(type(self)):  # type: ignore[arg-type]
            self.config[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def _internal_dict(self) -> Config:
        try:
            return self.__dict__["_internal_dict"]
        except KeyError as error:
            raise AttributeError("_internal_dict") from error

    @_internal_dict.setter
    def _internal_dict(self, config: Mapping[str, Any]) -> None:
        # diffusers writes it in register_to_config, its pipelines in their constructors.
        own = defaults(type(self))
        self.__dict__["_internal_dict"] = Config(model_said(as_one(config, own)), own)

    @property
    def _description(self) -> Description:
        """What the config says as it is now."""
        self._hear_tables()
        known = self._described
        return known if known and known.edition is self.config.edition else self._describe()

    def _describe(self) -> Description:
        self._described = described(self.config, self.num_inference_steps)
        return self._described


@cache
def _keys(scheduler: type) -> frozenset[str]:
    """The keys of the config that are not attributes of their own."""
    return frozenset(defaults(scheduler)) - frozenset(dir(scheduler))

"""What a search may set: the ranges that params.yaml has for one architecture."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

import optuna

from lineup.errors import UserError
from lineup.params import Params
from lineup.ranges import Range
from lineup.tracking.lineage import flatten

EXAMPLE = "{learning_rate: {log: [0.001, 0.1]}}"


@dataclass(frozen=True)
class Space:
    """The ranges of an architecture's settings, and the params that they change."""

    params: Params
    architecture: str
    ranges: dict[str, Range]

    @classmethod
    def of(cls, params: Params, architecture: str) -> Space:
        """Return the space of `architecture`; UserError where params.yaml has no valid one."""
        ranges = params.search.get(architecture)
        if not ranges:
            hint = f"write some below search:, such as {architecture}: {EXAMPLE}"
            raise UserError(f"params.yaml: search has no ranges for '{architecture}'; {hint}")
        space = cls(params, architecture, ranges)
        for key, limits in ranges.items():
            for value in next(iter(limits.values())):
                space._check(key, value)
        return space

    def _check(self, key: str, value: Any) -> None:  # noqa: ANN401
        try:
            self.changed({key: value}).recipe(self.architecture)
        except UserError as error:
            place = f"search.{self.architecture}.{key}"
            raise UserError(f"{error} ({place} of params.yaml has {value!r})") from None

    def changed(self, settings: dict[str, Any]) -> Params:
        """Return params with `settings` in them."""
        return self.params.changed(self.architecture, settings)

    def draw(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return a value for each setting; numbers have three digits, so that they can be typed."""
        return {key: _draw(trial, key, limits) for key, limits in self.ranges.items()}

    def current(self) -> dict[str, Any] | None:
        """Return what a study has for params.yaml as it is; None if that is out of a range."""
        recipe, hyperparameters = self.params.recipe(self.architecture)
        values = flatten(recipe.model_dump()) | hyperparameters
        found = {key: _encode(limits, values.get(key)) for key, limits in self.ranges.items()}
        return None if None in found.values() else found

    def overrides(self, settings: dict[str, Any]) -> str:
        """Return settings as `dvc exp run` takes them; a key that params.yaml lacks has a plus."""
        known = flatten(self.params.models[self.architecture])
        words = []
        for key, value in settings.items():
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            plus = "" if key in known else "+"
            words.append(f"-S {shlex.quote(f'{plus}models.{self.architecture}.{key}={text}')}")
        return " ".join(words)


def describe(limits: Range) -> str:
    """Return a range in one line, such as `log 0.001 to 0.1`."""
    ((kind, values),) = limits.items()
    return f"{kind} {(' or ' if kind == 'choice' else ' to ').join(map(str, values))}"


def _draw(trial: optuna.Trial, key: str, limits: Range) -> Any:  # noqa: ANN401
    ((kind, values),) = limits.items()
    match kind:
        case "choice":  # a study keeps texts, not lists
            return json.loads(trial.suggest_categorical(key, [json.dumps(one) for one in values]))
        case "int":
            return trial.suggest_int(key, *values)
        case _:
            return float(f"{trial.suggest_float(key, *values, log=kind == 'log'):.3g}")


def _encode(limits: Range, value: Any) -> Any:  # noqa: ANN401
    """Return what a study has for a value; None if it isn't in the range."""
    ((kind, values),) = limits.items()
    if kind == "choice":
        return json.dumps(value) if value in values else None
    is_inside = type(value) in (int, float) and values[0] <= value <= values[1]
    return value if is_inside else None

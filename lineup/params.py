"""params.yaml → validated, frozen settings."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from lineup.errors import UserError, nearest
from lineup.paths import ARCHITECTURES, PARAMS
from lineup.ranges import Range
from lineup.yaml_file import read_yaml

RECIPE_EXAMPLES = 48_000  # MNIST's training images, for which the passes were chosen
RECIPE_SIDE = 28  # their pixels a side
NOT_IN_RUN_CACHE = {"size", "nfiles"}  # keys that DVC leaves out when it compares runs
BEST = "auto"  # the model that ships: the first of the leaderboard
TAKEN_NAMES = rf"{BEST}|champion|challenger|latest|v\d+"
ALIAS = re.compile(rf"(?!({TAKEN_NAMES})$)[a-z0-9_-]+", re.IGNORECASE)  # that a model may have
MIN_SIZE, MAX_SIZE = 8, 512  # pixels a side
MAX_THREADS = 1024
MAX_EPOCHS = 200  # of epochs: auto on a small set


def _check_epochs(value: Any) -> Any:  # noqa: ANN401
    is_count = type(value) is int and value >= 1
    if not is_count and value != "auto":
        raise PydanticCustomError("epochs", "must be a whole number, or auto; 1 is the smallest")
    return value


def _check_threads(value: Any) -> Any:  # noqa: ANN401
    if value != "auto" and not (type(value) is int and 1 <= value <= MAX_THREADS):
        message = f"must be a whole number from 1 to {MAX_THREADS}, or auto"
        raise PydanticCustomError("threads", message)
    return value


def _check_flip(value: Any) -> Any:  # noqa: ANN401
    if type(value) is not bool and value != "auto":
        raise PydanticCustomError("flip", "must be true, false, or auto")
    return value


def _check_size(value: Any) -> Any:  # noqa: ANN401
    is_size = type(value) is int and MIN_SIZE <= value <= MAX_SIZE
    if not is_size and value != "auto":
        message = f"must be a number of pixels from {MIN_SIZE} to {MAX_SIZE}, or auto"
        raise PydanticCustomError("size", message)
    return value


def _check_weights(weights: str) -> str:
    if weights.startswith("models:/"):
        command = f"mlflow artifacts download -u {weights} -d pretrained"
        message = "is no file, so that DVC could not know what it holds; download it: {command}"
        raise PydanticCustomError("weights", message, {"command": command})
    if weights not in ("none", "imagenet") and not weights.endswith(".safetensors"):
        raise PydanticCustomError("weights", "must be none, imagenet, or a .safetensors file")
    return weights


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        message = "must be a regular expression: {problem}"
        raise PydanticCustomError("pattern", message, {"problem": str(error)}) from None
    return pattern


Fraction = Annotated[float, Field(gt=0, lt=1, strict=True)]
Probability = Annotated[float, Field(ge=0, le=1, strict=True)]
FractionOrOff = Annotated[float, Field(ge=0, lt=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
CountOrOff = Annotated[int, Field(ge=0, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Name = Annotated[str, StringConstraints(pattern=r"^[^/\\:]+$")]
Epochs = Annotated[int | Literal["auto"], BeforeValidator(_check_epochs)]
Size = Annotated[int | Literal["auto"], BeforeValidator(_check_size)]  # pixels a side
Channels = Literal[1, 3, "auto"]
Weights = Annotated[str, AfterValidator(_check_weights)]
Pattern = Annotated[str, StringConstraints(min_length=1), AfterValidator(_check_pattern)]
SectionType = TypeVar("SectionType", bound=BaseModel)


class Section(BaseModel):
    """A section of params.yaml: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """How a folder of images becomes tensors."""

    size: Size
    channels: Channels
    group: Pattern | None
    test: Fraction
    allow_duplicates: bool


class Split(Section):
    """The validation split of the training images."""

    validation: Fraction
    seed: Seed


class Augment(Section):
    """Random changes of the training images; zeros turn them off."""

    rotate: Annotated[float, Field(ge=0, le=180, strict=True)]
    shift: Probability
    scale: FractionOrOff
    shear: Probability
    flip: Annotated[bool | Literal["auto"], BeforeValidator(_check_flip)]
    vertical_flip: Annotated[bool, Field(strict=True)]
    crop: FractionOrOff
    color: FractionOrOff
    erase: Probability


class Train(Section):
    """The recipe: every setting of a training that is not the architecture's own."""

    epochs: Epochs
    passes: Count
    batch_size: Count
    optimizer: Literal["sgd", "adam", "adamw", "muon"]
    learning_rate: Positive
    momentum: FractionOrOff
    nesterov: bool
    weight_decay: NotNegative
    schedule: Literal["constant", "step", "cosine", "one_cycle"]
    warmup: Fraction
    step_epochs: Count
    step_factor: Annotated[float, Field(gt=0, le=1, strict=True)]
    clip_norm: NotNegative
    label_smoothing: FractionOrOff
    class_weights: Literal["none", "balanced"]
    weights: Weights
    freeze_epochs: CountOrOff
    backbone_lr_factor: Positive
    ema: FractionOrOff
    augment: Augment
    monitor: Literal["auto", "val_loss", "val_accuracy", "val_mae", "val_r2"]
    patience: CountOrOff
    keep_every: CountOrOff
    top_k: Count
    log_every: Count
    tensorboard: bool
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    precision: Literal["auto", "float32", "bfloat16", "portable"]
    threads: Annotated[int | Literal["auto"], BeforeValidator(_check_threads)]


class Evaluate(Section):
    """What is reported on the test images."""

    confidence: Fraction
    mistakes: Count


class Export(Section):
    """What ships, and when it becomes the champion."""

    promote: Literal["gate", "always", "never"]
    level: Fraction
    margin: NotNegative
    quantize: Literal["none", "dynamic", "static"]
    max_drop: NotNegative


class Params(Section):
    """All of params.yaml."""

    dataset: Name
    data: Data
    model: Name
    architectures: Annotated[list[Name], Field(min_length=1)]
    seed: Seed
    split: Split
    train: Train
    models: dict[Name, dict[str, Any]]
    search: dict[Name, dict[str, Range]] = {}  # by architecture, as models
    evaluate: Evaluate
    export: Export

    def recipe(self, architecture: str) -> tuple[Train, dict[str, Any]]:
        """Return the recipe of `architecture`, its overrides applied, and its hyperparameters."""
        section = self.models.get(architecture)
        if section is None:
            hint = nearest(architecture, self.models)
            raise UserError(f"params.yaml: models has no section '{architecture}'; {hint}")
        overrides = {key: value for key, value in section.items() if key in Train.model_fields}
        hyperparameters = {
            key: value for key, value in section.items() if key not in Train.model_fields
        }
        known = known_hyperparameters(architecture)
        for key in hyperparameters:
            if key not in known:
                hint = nearest(key, [*known, *Train.model_fields])
                raise UserError(f"params.yaml: unknown key 'models.{architecture}.{key}'; {hint}")
        if overrides.get("epochs") == "auto":
            del overrides["epochs"]  # so that a number in train rules
        defaults = self.train.model_dump()
        if isinstance(overrides.get("augment"), dict):
            overrides["augment"] = defaults["augment"] | overrides["augment"]
        return validated(Train, defaults | overrides, f"models.{architecture}"), hyperparameters

    def changed(self, architecture: str, settings: dict[str, Any]) -> Params:
        """Return params with `settings` in place of those of the section models.<architecture>.

        A key such as augment.rotate stands for one of a section within.
        """
        section = dict(self.models[architecture])
        for key, value in settings.items():
            outer, dot, inner = key.partition(".")
            within = section.get(outer) if isinstance(section.get(outer), dict) else {}
            section[outer] = {**within, inner: value} if dot else value
        return self.model_copy(update={"models": self.models | {architecture: section}})

    def epochs(self, architecture: str, examples: int, shape: list[int]) -> tuple[int, str]:
        """Return how many epochs `architecture` trains on examples of `shape`, and why."""
        recipe, _ = self.recipe(architecture)
        if recipe.epochs != "auto":
            return recipe.epochs, self._deciding_key(architecture, "epochs")
        key = self._deciding_key(architecture, "passes")
        pixels = math.prod(shape[1:]) if len(shape) == 3 else RECIPE_SIDE**2
        epochs = auto_epochs(recipe.passes, examples, pixels)
        if epochs == recipe.passes:
            return epochs, f"auto: {key}"
        limit = f", at most {MAX_EPOCHS}" if epochs == MAX_EPOCHS else ""
        made_for = f"{RECIPE_EXAMPLES:,} examples of {RECIPE_SIDE} × {RECIPE_SIDE}"
        return epochs, f"auto: {key} = {recipe.passes} is for {made_for}, less takes more{limit}"

    def _deciding_key(self, architecture: str, key: str) -> str:
        own = self.models[architecture].get(key, "auto")
        return f"train.{key}" if own == "auto" else f"models.{architecture}.{key}"

    def ignored_keys(self) -> list[str]:
        """Return the keys of `train` that the sections of all chosen architectures override."""
        overridden = [_overridden_keys(self.models[name]) for name in self.architectures]
        return sorted(set.intersection(*overridden))


def load_params(path: Path = PARAMS) -> Params:
    """Read and validate params.yaml; raises UserError with one readable line per mistake."""
    if not path.exists():
        raise UserError(f"{path} is not here: run this in the project's root folder")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must hold sections such as 'train:', found {type(content).__name__}"
        )
    params = validated(Params, content)
    known = available_architectures()
    if bad := [name for name in known if not ALIAS.fullmatch(name)]:
        raise UserError(f"an architecture cannot be named '{bad[0]}'; rename its file")
    chosen = [] if params.model == BEST else [params.model]
    for name in [*chosen, *params.architectures, *params.models, *params.search]:
        if name not in known:
            raise UserError(f"params.yaml: unknown architecture '{name}'; {nearest(name, known)}")
    if params.model not in (BEST, *params.architectures):
        raise UserError(
            f"params.yaml: model '{params.model}' is not one of architectures "
            f"({', '.join(params.architectures)}); try -S model={params.architectures[0]}"
        )
    if len(set(params.architectures)) < len(params.architectures):
        raise UserError("params.yaml: architectures names one architecture twice")
    for architecture in dict.fromkeys([*params.architectures, *params.models]):
        params.recipe(architecture)
    for architecture in params.architectures:
        check_recipe(params, architecture)
    return params


def check_recipe(params: Params, architecture: str) -> None:
    """Raise UserError where two settings of a recipe do not fit each other."""
    recipe, _ = params.recipe(architecture)
    if recipe.precision == "portable" and recipe.threads == "auto":
        raise UserError(
            "params.yaml: precision = 'portable' needs a number of threads, which is part of the "
            "result; set train.threads: 2"
        )
    if recipe.precision == "portable" and recipe.device not in ("auto", "cpu"):
        raise UserError("params.yaml: precision = 'portable' is for device: cpu")
    if recipe.schedule == "step" and recipe.epochs == "auto":
        raise UserError(
            "params.yaml: schedule = 'step' needs a number of epochs, not auto; "
            f"set train.epochs or models.{architecture}.epochs"
        )


def _overridden_keys(section: dict[str, Any]) -> set[str]:
    """Return the keys of train that a section overrides; those of augment as augment.KEY."""
    keys = {key for key in section if key in Train.model_fields}
    if section.get("epochs") == "auto":
        keys.remove("epochs")
    if isinstance(section.get("augment"), dict):
        keys.remove("augment")
        keys |= {f"augment.{key}" for key in section["augment"]}
    return keys


def auto_epochs(passes: int, examples: int, pixels: int) -> int:
    """Return the epochs in which as many pixels are seen, in all, as of MNIST in `passes`.

    At least `passes`, whatever the set, and no more than MAX_EPOCHS for that reason.
    """
    as_many = math.ceil(passes * RECIPE_EXAMPLES * RECIPE_SIDE**2 / (examples * pixels))
    return max(passes, min(MAX_EPOCHS, as_many))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def available_architectures() -> list[str]:
    """Return the names of the files in lineup/architectures/: the architectures' names."""
    return sorted(path.stem for path in ARCHITECTURES.glob("[!_]*.py"))


def known_hyperparameters(architecture: str) -> list[str]:
    """Return the keyword-only arguments of an architecture's `build`.

    They are read from its file: importing it takes seconds.
    """
    file = ARCHITECTURES / f"{architecture}.py"
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: {error.msg}") from None
    if borrowed := _imported_architectures(tree) - {architecture}:
        unseen = f"imports from {borrowed.pop()}.py, whose changes DVC would not see"
        raise UserError(f"{file} {unseen}; copy what it takes, or move that to __init__.py there")
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "build":
            if surplus := statement.args.args[2:]:
                hint = f"write build(shape, outputs, *, {surplus[0].arg}, …)"
                raise UserError(f"{file}: hyperparameters come after a *; {hint}")
            names = [argument.arg for argument in statement.args.kwonlyargs]
            if unseen := NOT_IN_RUN_CACHE.intersection(names):
                raise UserError(
                    f"{file}: DVC's cache of runs overlooks '{unseen.pop()}'; rename it"
                )
            if taken := sorted(Train.model_fields.keys() & names):
                raise UserError(f"{file}: '{taken[0]}' is a key of train already; rename it")
            return names
    raise UserError(f"{file} defines no function build; {ARCHITECTURES / 'mlp.py'} is an example")


def _imported_architectures(tree: ast.Module) -> set[str]:
    """Return which files beside it an architecture's file imports."""
    words, levels = set(), {0: "", 1: "lineup.architectures", 2: "lineup"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            words.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, [levels.get(node.level), node.module]))
            words.update([module, *(f"{module}.{name.name}" for name in node.names)])
    prefix = "lineup.architectures."
    parts = {word.removeprefix(prefix).split(".")[0] for word in words if word.startswith(prefix)}
    return parts & {path.stem for path in ARCHITECTURES.glob("*.py")}


def validated(section: type[SectionType], content: dict[str, Any], prefix: str = "") -> SectionType:
    """Return `content` as a `section`; UserError with a line per error."""
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise UserError(f"params.yaml: {describe_errors(error, section, prefix)}") from None


def describe_errors(
    error: ValidationError, section: type[BaseModel] | None = None, prefix: str = ""
) -> str:
    """Return a line per error of pydantic's; an unknown key comes with the nearest valid one."""
    return "\n       ".join(_describe(detail, section, prefix) for detail in error.errors())


def _describe(detail: dict[str, Any], section: type[BaseModel] | None, prefix: str) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join([prefix, *location] if prefix else location)
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{key}'; {nearest(location[-1], _valid_keys(section, location[:-1]))}"
    if detail["type"].startswith("missing"):
        return f"key '{key}' is missing"
    given, message = detail["input"], detail["msg"]
    is_number = detail["type"] == "string_type" and isinstance(given, (int, float))
    hint = "; put it in quotes" if is_number else ""
    return f"{key} = {given!r}: {message[0].lower()}{message[1:]}{hint}"


def _valid_keys(section: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys of the section found at `location` below `section`."""
    for part in location:
        if not part.isdigit():  # that would be an item of a list
            annotation = section.model_fields[part].annotation
            inner = (item for item in get_args(annotation) if item is not Ellipsis)
            section = next(inner, annotation)
    return list(section.model_fields)

"""What a comparison is asked for on the command line, checked before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from hibprune.attribution import METHODS, MethodBase
from hibprune.attribution.methods import Random
from hibprune.compression.settings import RepairKind
from hibprune.errors import UserError, did_you_mean, shortened
from hibprune.execution.files import digest
from hibprune.models.layouts import Family
from hibprune.recipe import LoadedRecipe, Recipe, load_recipe
from hibprune.recipe.bounded_yaml import NotYAMLError, parse_yaml
from hibprune.records.comparison import NO_REPAIR
from hibprune.records.units import ENCODER
from hibprune.stages.score import ATTRIBUTE

SCOPES = ("global", "layerwise")
REPAIRS: tuple[RepairKind, ...] = get_args(RepairKind)
ALL = "all"

Name = TypeVar("Name", bound=str)
MAX_SEEDS = 1000


@dataclass(frozen=True)
class Request:
    """The options of `hibprune compare`, as typed; None where the task decides."""

    methods: str = ALL
    fractions: str = "0.1,0.2,0.3,0.4,0.5,0.6,0.7"
    scope: str = "global,layerwise"
    seeds: int = 5
    metric: str | None = None
    points: str = "0.1,0.3,0.5"
    repair: str = NO_REPAIR


@dataclass(frozen=True)
class Entry:
    """A method in the comparison. `variants` are the recipe with it, one for each draw of scores.

    `own` tells the recipe's own method with its own settings.
    """

    label: str
    variants: tuple[LoadedRecipe, ...]
    own: bool

    @property
    def method(self) -> MethodBase:
        """The method with all its settings."""
        recipe = self.variants[0].recipe
        return recipe.attribution.for_task(recipe.task.kind)

    @property
    def drawn(self) -> bool:
        """Whether its scores are chance, so that one draw says little."""
        return isinstance(self.method, Random)

    @property
    def step_names(self) -> tuple[str, ...]:
        """Where the scores of each draw are kept; what a run scores, where a run keeps it."""
        settings = self.method.model_dump(mode="json", exclude=set(self.method.resources))
        named = json.dumps(settings, sort_keys=True)
        seeds = [variant.recipe.seed for variant in self.variants]
        names = [f"{ATTRIBUTE}-{self.method.name()}-{digest(named, str(s))[:8]}" for s in seeds]
        return (ATTRIBUTE, *names[1:]) if self.own else tuple(names)


@dataclass(frozen=True)
class Choice:
    """What will be compared. `points` are fractions at which the task's own metric is measured.

    `left_open` are the options among --fractions and --points that are as nobody typed them.
    """

    entries: tuple[Entry, ...]
    all_methods: bool
    fractions: tuple[float, ...]
    scopes: tuple[str, ...]
    metric: str
    points: tuple[float, ...]
    repairs: tuple[RepairKind, ...]
    left_open: frozenset[str]

    @property
    def amounts(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """The fractions, by the option that asks for them."""
        return (("--fractions", self.fractions), ("--points", self.points))

    @property
    def reference(self) -> str:
        """What the others' areas are held against: the recipe's own method, if it is there."""
        own = [entry.label for entry in self.entries if entry.own]
        chosen = [entry.label for entry in self.entries if not entry.drawn]
        return (own or chosen or [self.entries[0].label])[0]


def choose(loaded: LoadedRecipe, overrides: Sequence[str], request: Request) -> Choice:
    """Read the options.

    Raises:
        UserError: a method, setting, fraction, scope, metric or repair is not known or out of
            range.
    """
    task = loaded.recipe.task
    metrics = {
        metric.replace(" ", "-"): metric
        for metric in (task.curve_metric, task.metric_name)
        if metric is not None
    }
    wanted = request.metric or next(iter(metrics))
    if wanted not in metrics:
        raise UserError(f"--metric: '{wanted}' is not one of {', '.join(metrics)} ({task.kind})")
    metric = metrics[wanted]
    if not 1 <= request.seeds <= MAX_SEEDS:
        bound = "at least 1" if request.seeds < 1 else f"at most {MAX_SEEDS:,}"
        raise UserError(f"--seeds: should be {bound}, not {request.seeds}")
    return Choice(
        entries=entries_of(loaded, overrides, request),
        all_methods=request.methods == ALL,
        fractions=fractions_of("--fractions", request.fractions),
        scopes=_named("--scope", request.scope, SCOPES),
        metric=metric,
        points=() if metric == task.metric_name else fractions_of("--points", request.points),
        repairs=_named("--repair", request.repair, REPAIRS),
        left_open=frozenset(
            f"--{name}"
            for name in ("fractions", "points")
            if getattr(request, name) == getattr(Request, name)
        ),
    )


def fractions_of(option: str, text: str, example: str = "e.g. 0.1,0.2,0.3") -> tuple[float, ...]:
    """Rising fractions from `0.1,0.2`.

    Raises:
        UserError: one is not a number, or not between 0 and 1.
    """
    fractions = amounts_of(option, text, example)
    for fraction in fractions:
        if not 0 < fraction < 1:
            raise UserError(f"{option}: {fraction:.12g} is not between 0 and 1: {example}")
    return fractions


def amounts_of(option: str, text: str, example: str) -> tuple[float, ...]:
    """Rising numbers from `1.5,2`.

    Raises:
        UserError: one is not a number.
    """
    amounts = set()
    for part in parts_of(option, text):
        try:
            amounts.add(float(part))
        except ValueError as error:
            raise UserError(f"{option}: '{shortened(part)}' is not a number: {example}") from error
    return tuple(sorted(amounts))


def entries_of(
    loaded: LoadedRecipe, overrides: Sequence[str], request: Request
) -> tuple[Entry, ...]:
    """The methods of `hib,hib:beta=10:bottleneck=paper,random`.

    A name means the recipe's settings where it is the recipe's method, the defaults otherwise;
    what follows it changes single settings.

    Raises:
        UserError: a method or setting is not known, or two entries come to the same.
    """
    names = [method.name() for method in METHODS]
    wanted = names if request.methods == ALL else parts_of("--methods", request.methods)
    entries: dict[str, tuple[str, Entry]] = {}
    for text in wanted:
        name, *settings = text.split(":")
        if name not in names:
            hint = did_you_mean(name, names, cutoff=0.5) or f": one of {', '.join(names)}"
            raise UserError(f"--methods: unknown method '{name}'{hint}")
        variant = _with_method(loaded, overrides, text, name, settings)
        label = _label(variant.recipe)
        entry = Entry(label, (variant,), own=label == _label(loaded.recipe))
        if entry.method.scored_stacks() != (ENCODER,):
            raise UserError(
                f"--methods {text}: stacks: only the encoder's heads can be removed: leave it out"
            )
        if entry.drawn:
            seeds = range(variant.recipe.seed, variant.recipe.seed + request.seeds)
            entry = replace(entry, variants=tuple(_with_seed(variant, seed) for seed in seeds))
        if entry.label in entries:
            raise UserError(
                f"--methods: '{text}' is the same as '{entries[entry.label][0]}': leave one out"
            )
        entries[entry.label] = (text, entry)
    return tuple(entry for _, entry in entries.values())


def servable(choice: Choice, family: Family) -> tuple[Choice, list[str]]:
    """The choice without methods that a family cannot serve, and a line for each left out.

    Raises:
        UserError: such a method was asked for by name; names the methods that can.
    """
    faults = {entry.label: entry.method.family_fault(family) for entry in choice.entries}
    unfit = {label: fault for label, fault in faults.items() if fault is not None}
    if unfit and not choice.all_methods:
        label, fault = next(iter(unfit.items()))
        able = [
            method.name()
            for method in METHODS
            if method.model_validate({"method": method.name()}).family_fault(family) is None
        ]
        raise UserError(
            f"--methods: {label} cannot score model type '{family.model_type}': {fault}: "
            f"use {', '.join(able)}"
        )
    entries = tuple(entry for entry in choice.entries if entry.label not in unfit)
    return replace(choice, entries=entries), [f"{x}: left out: {y}" for x, y in unfit.items()]


def _with_method(
    loaded: LoadedRecipe, overrides: Sequence[str], text: str, name: str, settings: Sequence[str]
) -> LoadedRecipe:
    own = loaded.recipe.attribution
    content: dict[str, Any] = {"method": name}
    if own.name() == name:
        content |= own.model_dump(mode="json", exclude_unset=True)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise UserError(f"--methods {text}: '{setting}': give it as setting=value")
        try:
            content[key] = parse_yaml(value)
        except NotYAMLError as error:
            raise UserError(f"--methods {text}: '{value}' is not a YAML value") from error
    try:
        override = f"attribution={json.dumps(content, default=str)}"
        return load_recipe(loaded.path, (*overrides, override))
    except UserError as error:
        faults = str(error).replace(f"{loaded.path}: attribution.", "")
        raise UserError(
            "\n".join(f"--methods {text}: {fault}" for fault in faults.splitlines())
        ) from error


def _with_seed(loaded: LoadedRecipe, seed: int) -> LoadedRecipe:
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"seed": seed}))


def _label(recipe: Recipe) -> str:
    """The method's name, and the settings that are not its defaults for the task.

    A switch such as `paper` may change the defaults of other fields, and stands for them.
    """
    method = recipe.attribution.for_task(recipe.task.kind)
    kind = type(method)
    switches = {name: True for name in kind.model_fields if getattr(method, name) is True}
    usual = kind.model_validate({"method": method.name(), **switches}).for_task(recipe.task.kind)
    bare = kind.model_validate({"method": method.name()})
    told = [
        _setting(field, getattr(method, field))
        for field in kind.model_fields
        if field not in method.resources
        and getattr(method, field) != getattr(bare if field in switches else usual, field)
    ]
    return f"{method.name()} ({', '.join(told)})" if told else method.name()


def _setting(field: str, value: object) -> str:
    name = {"beta": "β"}.get(field, field.replace("_", " "))
    if value is None or isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, str):
        return f"{name} {value}"
    shown = "+".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"
    return f"{name} {shown}"


def _named(option: str, text: str, known: Sequence[Name]) -> tuple[Name, ...]:
    """Those of the known names that stand between commas, in the order of what is known."""
    wanted = parts_of(option, text)
    for name in wanted:
        if name not in known:
            hint = did_you_mean(name, known) or f": one of {', '.join(known)}"
            raise UserError(f"{option}: unknown {option.removeprefix('--')} '{name}'{hint}")
    return tuple(name for name in known if name in wanted)


def parts_of(option: str, text: str) -> list[str]:
    """What stands between commas. Raises UserError where that is nothing."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{option}: nothing in it")
    return parts

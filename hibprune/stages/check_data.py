"""What can be known of a recipe's data without running it: by lists, headers and a few clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hibprune.data import (
    Content,
    ContentFault,
    DataSource,
    DurationLimits,
    Text,
    Utterance,
    missing_audio,
    probe_seconds,
    read_text,
    read_waveform,
    usable,
)
from hibprune.data.dataset_files import is_cached
from hibprune.errors import UserError, shortened
from hibprune.models.checkpoint import Checkpoint
from hibprune.recipe import InputLimits, LoadedRecipe, Recipe
from hibprune.records.check import CheckedData
from hibprune.records.manifest import SkippedClip
from hibprune.stages.hub import require_on_hub, require_split
from hibprune.stages.load import calibration_order, validation_order
from hibprune.stages.recovery_clips import labels_used, recovery_order
from hibprune.stages.sources import CALIBRATION, VALIDATION
from hibprune.stages.targets import with_targets

MOST_LOOKED_AT = 20_000
"""Clips of a set whose headers are read: more would take minutes."""
MOST_DECODED, MOST_SECONDS_DECODED = 20, 120.0
"""Clips of a set that are also decoded, those drawn first, and how long they may be together."""
MISSING = "missing"
"""Why a clip that is not there cannot be used, as a run says it."""
ANY_RATE = 16_000
"""The rate (Hz) to read clips at where there is no model to say which."""

Progress = Callable[[str, int, int], None]
"""Which set is looked at, how many of its clips are done, and of how many."""


@dataclass
class DataCheck:
    """What came of looking at one set; `listed` is empty where it could not be listed."""

    about: CheckedData
    listed: list[Utterance] = field(default_factory=list)
    taken: Sequence[Utterance] = ()
    """Those of them that a run would take, as far as can be known."""
    targeted: bool = False
    """Whether all that was listed has a target that the model knows."""
    faults: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Look:
    """What headers, texts and some clips say: the reason against each input that has one.

    `seconds` is the length of the inputs without a reason; `decoded` counts clips, with those that
    turned out to be none.
    """

    looked_at: int
    decoded: int
    reasons: dict[str, str]
    seconds: float


def check_data(
    loaded: LoadedRecipe,
    use: str,
    checkpoint: Checkpoint | None,
    offline: bool,
    progress: Progress,
) -> DataCheck:
    """List the set that is for `use`, and read the headers of its clips or its texts.

    Faults are noted, not raised; without a checkpoint its labels and limits are not known.
    """
    recipe, medium = loaded.recipe, loaded.recipe.task.medium
    source = _source(recipe, use)[1]
    check = DataCheck(CheckedData(use=use, kind=source.kind, medium=medium.name))
    try:
        absent = _elsewhere(use, source, loaded.root, offline)
        if absent is not None:
            check.not_checked.append(absent)
            return check
        listing = source.listing(recipe.task.fields, loaded.root)
        labelled = _labelled(recipe, use, listing.utterances)
    except UserError as error:
        check.faults.append(str(error))
        return check
    check.listed = listing.utterances
    passed_over = [SkippedClip(id=name, reason=why) for name, why in listing.passed_over]
    check.about = check.about.model_copy(
        update={
            "inputs": len(listing.utterances),
            "classes": _classes(listing.utterances),
            "passed_over": tuple(passed_over),
        }
    )
    measured = use == VALIDATION
    if checkpoint and labelled:
        try:
            targeted = with_targets(use, check.listed, recipe.task, checkpoint.vocabulary, measured)
        except UserError as error:
            check.faults.append(str(error))
        else:
            check.listed, check.notes = targeted.utterances, list(targeted.notes)
            check.targeted = True
            check.about = check.about.model_copy(update={"classes": _classes(check.listed)})
    _look_into(check, loaded, checkpoint, progress)
    return check


def _source(recipe: Recipe, use: str) -> tuple[str, DataSource]:
    """The key of a set in the recipe, and where it comes from."""
    return next(one for one in recipe.sources if one[0].startswith(f"{use}."))


def _labelled(recipe: Recipe, use: str, clips: Sequence[Utterance]) -> bool:
    """Whether the targets that a set gives are used. Raises UserError where there should be some"""
    if use == CALIBRATION:
        return recipe.calibration.labels == "dataset"
    return use == VALIDATION or labels_used(recipe, clips) == "dataset"


def _drawing(
    recipe: Recipe, use: str, clips: Sequence[Utterance]
) -> tuple[InputLimits, list[Utterance], int | None]:
    """The limits of a set, its clips in the order they are drawn, and how many are; None: all."""
    if use == CALIBRATION:
        settings = recipe.calibration
        samples = max(settings.samples, settings.repair_samples or 0)
        return settings, calibration_order(recipe, clips), samples
    if use == VALIDATION:
        return recipe.validation, validation_order(recipe, clips), recipe.validation.limit
    assert recipe.recover is not None
    return recipe.recover, recovery_order(recipe, clips), recipe.recover.limit


def _elsewhere(use: str, source: DataSource, root: Path, offline: bool) -> str | None:
    """Why the data cannot be looked at, or None when they can.

    Raises UserError when they are nowhere.
    """
    if source.at_hand(root) or (source.remote is None and not offline):
        # What is nowhere says so when it is listed.
        return None
    if offline:
        return f"{use}: its data are not on this machine"
    if source.kind == "datasets":
        try:
            require_on_hub("dataset", source.path, source.revision)
        except UserError:
            if not is_cached(source.path):
                raise
            return f"{use}: {source.path} is in the cache, and the Hub does not answer"
        require_split(source)
    return f"{use}: its data come from {source.remote} when the recipe is run"


def _look_into(
    check: DataCheck,
    loaded: LoadedRecipe,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> None:
    recipe, use = loaded.recipe, check.about.use
    settings, ordered, samples = _drawing(recipe, use, check.listed)
    limits = settings.durations
    if checkpoint is not None and checkpoint.preprocessor.medium.unit == "seconds":
        preprocessor = checkpoint.preprocessor
        limits = limits.within(preprocessor.shortest, preprocessor.longest)
    look = _look(
        ordered[:MOST_LOOKED_AT],
        limits,
        checkpoint,
        lambda done, total: progress(use, done, total),
    )
    if look.looked_at < len(ordered):
        check.not_checked.append(
            f"{use}: {len(ordered) - look.looked_at:,} of "
            f"{recipe.task.medium.counted(len(ordered))}, those drawn last"
        )
    gone = dict.fromkeys(missing_audio(ordered), MISSING)
    reasons = gone | look.reasons
    wanted = len(ordered) if samples is None else min(samples, len(ordered))
    drawn = None
    check.taken = [one for one in ordered if one.id not in reasons][:wanted]
    if use == CALIBRATION and samples is not None and samples > len(ordered):
        asks = "samples" if samples == recipe.calibration.samples else "repair_samples"
        check.faults.append(
            f"{loaded.path}: calibration.{asks}: {samples} asked for, "
            f"but there are {recipe.task.medium.counted(len(ordered))}"
        )
    else:
        limit = None if samples is None else wanted
        try:
            check.taken = _taken(ordered, use, reasons, limit, settings.max_unreadable)
            drawn = len(check.taken)
        except UserError as error:
            key = _source(recipe, use)[0]
            check.faults.append(
                f"{loaded.path}: {key}: {len(gone)} audio files are missing, "
                f"the first {shortened(next(one.id for one in check.listed if one.id in gone))}"
                if gone and len(gone) == len(reasons)
                else str(error)
            )
    has_seconds = recipe.task.medium.unit == "seconds"
    check.about = check.about.model_copy(
        update={
            "drawn": drawn,
            "looked_at": look.looked_at,
            "decoded": look.decoded if has_seconds else None,
            "hours": look.seconds / 3600 if has_seconds else None,
            "skipped": tuple(SkippedClip(id=one, reason=why) for one, why in reasons.items()),
        }
    )


def _look(
    utterances: Sequence[Utterance],
    limits: DurationLimits,
    checkpoint: Checkpoint | None,
    progress: Callable[[int, int], None],
) -> _Look:
    reasons: dict[str, str] = {}
    lengths: list[tuple[Utterance, float]] = []
    for number, utterance in enumerate(utterances, start=1):
        try:
            lengths.append((utterance, _seconds(utterance.content, limits, checkpoint)))
        except ContentFault as fault:
            reasons[utterance.id] = fault.reason
        progress(number, len(utterances))
    decoded = _fitting(lengths)
    for utterance in decoded:
        try:
            _read(utterance.content, limits, checkpoint)
        except ContentFault as fault:
            reasons[utterance.id] = fault.reason
    usable_seconds = sum(seconds for one, seconds in lengths if one.id not in reasons)
    return _Look(len(utterances), len(decoded), reasons, usable_seconds)


def _fitting(lengths: Sequence[tuple[Utterance, float]]) -> list[Utterance]:
    """The first of the clips, as many as are decoded in a few seconds."""
    fitting: list[Utterance] = []
    left = MOST_SECONDS_DECODED
    for utterance, seconds in lengths[:MOST_DECODED]:
        left -= seconds
        if isinstance(utterance.content, Text) or left < 0:
            break
        fitting.append(utterance)
    return fitting


def _read(content: Content, limits: DurationLimits, checkpoint: Checkpoint | None) -> None:
    """Read a clip as a run does. Raises ContentFault."""
    if checkpoint is not None:
        checkpoint.read(content, limits)
    elif not isinstance(content, Text):
        read_waveform(content, ANY_RATE, limits)


def _seconds(content: Content, limits: DurationLimits, checkpoint: Checkpoint | None) -> float:
    """The length of a clip, 0 for a text. Raises ContentFault as far as a look shows a fault."""
    if not isinstance(content, Text):
        return probe_seconds(content, limits)
    if checkpoint is None:
        read_text(content)
    else:
        checkpoint.read(content, limits)
    return 0.0


def _taken(
    ordered: Sequence[Utterance],
    use: str,
    reasons: dict[str, str],
    wanted: int | None,
    max_unreadable: float,
) -> Sequence[Utterance]:
    """The inputs that a run would take. Raises UserError where it would stop."""
    faulty = {id(one.content): reasons[one.id] for one in ordered if one.id in reasons}

    def read(content: Content) -> None:
        if id(content) in faulty:
            raise ContentFault(faulty[id(content)])

    return usable(ordered, use, read, wanted, max_unreadable, identified=lambda _: "").utterances


def _classes(utterances: Sequence[Utterance]) -> dict[str, int] | None:
    counts: Counter[str] = Counter()
    for utterance in utterances:
        if isinstance(utterance.target, dict):
            counts[", ".join(utterance.target.values())] += 1
        elif utterance.target is not None:
            counts[utterance.target] += 1
    return dict(sorted(counts.items())) or None

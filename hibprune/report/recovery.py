"""What recovery won, and how its losses went: a section of the report and its picture."""

from __future__ import annotations

from pathlib import Path

from hibprune.records.manifest import Manifest, RecoverySummary
from hibprune.records.recovery import Recovery
from hibprune.report.figures import INK, KEPT, REMOVED, dress, save
from hibprune.report.markdown import plain, table
from hibprune.report.numbers import (
    count,
    counted,
    duration,
    four_decimals,
    listing,
    metric_decimals,
    percent,
)
from hibprune.report.wording import change_finding, metric_name

FIGURE = "figures/recovery.png"
MOVED = {
    "all": "all weights",
    "repaired": "the weights that repair had fitted",
    "norms+biases": "norms and biases",
}


def recovery_section(manifest: Manifest) -> str:
    """What training brought beyond repair, in metric and minutes; empty where there was none."""
    summary = manifest.recovery
    if summary is None:
        return ""
    found, recovered = summary.recovery, manifest.variant("pruned").metric
    name = metric_name(manifest.metric.name)
    decimals = metric_decimals(manifest.metric.n)
    rows = [
        ("repair alone", percent(summary.repaired.value, decimals), "", ""),
        (
            "repair and recovery",
            percent(recovered.value, decimals),
            change_finding(summary.repaired, recovered, summary.change),
            duration(summary.seconds),
        ),
    ]
    return "\n\n".join(
        [
            "## Recovery",
            f"{trained_sentence(manifest)} {count(found.parameters)} numbers moved "
            f"({MOVED[found.trained]}). {_ending(found, manifest)}",
            table("lrlr", ["", name, "change", "training took"], rows),
            f"*{name.capitalize()} over {manifest.medium.counted(manifest.metric.n)} of the "
            "validation: of repair alone under PyTorch, of both the ONNX file.*",
            f"![Loss over the steps of training]({FIGURE})",
            table("rrr", ["step", "training loss", "held-out loss"], _losses(found)),
        ]
    )


def trained_sentence(manifest: Manifest) -> str:
    """How long the repaired model was trained on what; empty where it was not."""
    if manifest.recovery is None:
        return ""
    found, medium = manifest.recovery.recovery, manifest.medium
    steps = counted(found.steps, "step")
    whose = "of its own" if found.seen_elsewhere else "of calibration"
    return (
        f"The whole was then trained towards the original for {steps} on "
        f"{medium.counted(found.clips)} {whose}, in {duration(manifest.recovery.seconds)}."
    )


def recovery_caveats(manifest: Manifest) -> list[str]:
    """A sentence for each reason to expect less, or more, of a recovery than its figures."""
    summary = manifest.recovery
    if summary is None:
        return []
    found, sentences = summary.recovery, []
    if found.broke_off:
        fault = "was no longer finite" if found.ended == "not finite" else "diverged"
        sentences.append(
            f"Recovery was stopped after {found.steps} of {found.planned} steps, as its loss "
            f"{fault}; the best weights so far were kept. Lower recover.learning_rate."
        )
    if not found.seen_elsewhere:
        sentences.append(
            f"Recovery saw only the {found.clips} calibration {manifest.medium.many}: give it "
            "more of them (recover.data), which is what it gains by."
        )
    return sentences


def recovery_figure(summary: RecoverySummary, path: Path) -> None:
    """Draw the losses of training and of the clips held out over the steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3.1), layout="constrained")
    axes = figure.add_subplot()
    found = summary.recovery
    for name, colour, marker, points in (
        ("training", KEPT, "o", [(one.step, one.training) for one in found.curve]),
        ("held out", REMOVED, "s", [(one.step, one.held_out) for one in found.curve]),
    ):
        there = [(step, loss) for step, loss in points if loss is not None]
        if there:
            steps, losses = zip(*there, strict=True)
            axes.plot(steps, losses, marker=marker, markersize=4, color=colour, label=name)
    axes.axvline(found.best_step, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="kept")
    dress(axes, "loss against the original", "step", "loss")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, labelcolor=INK)
    save(figure, path)


def _losses(found: Recovery) -> list[tuple[str, str, str]]:
    def shown(loss: float | None) -> str:
        return "–" if loss is None else four_decimals(loss)

    return [
        (
            f"{one.step}{' (kept)' if one.step == found.best_step else ''}",
            shown(one.training),
            shown(one.held_out),
        )
        for one in found.curve
    ]


def _ending(found: Recovery, manifest: Manifest) -> str:
    parts = []
    if found.ended == "no better":
        parts.append(f"it ended early, after {found.steps} of {found.planned} steps")
    if found.held_out:
        clips = manifest.medium.counted(found.held_out)
        kept = (
            f"the weights of step {found.best_step} were best on {clips} held out and are kept"
            if found.best_step
            else f"none were better on {clips} held out than the repaired ones, which are kept"
        )
        parts.append(kept)
    sentence = listing(parts)
    return plain(f"{sentence[:1].upper()}{sentence[1:]}.") if sentence else ""

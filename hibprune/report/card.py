"""`README.md` of the directory: a model card as the Hugging Face Hub reads it."""

from __future__ import annotations

from hibprune.records.manifest import Manifest
from hibprune.report import wording
from hibprune.report.caveats import caveats
from hibprune.report.citations import citations
from hibprune.report.gates import gates_sentence
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.numbers import capitalised
from hibprune.report.ranking import scored_by
from hibprune.report.template import filled
from hibprune.report.transcripts import transcripts_sentence
from hibprune.report.usage import USAGES, caution, usage_section
from hibprune.report.variants import (
    deployment_sentences,
    missing_sentences,
    speed_headings,
    variant_rows,
)
from hibprune.tasks.languages import language_code


def model_card(manifest: Manifest, recipe_yaml: str) -> str:
    """Write the card: front matter, results, use, removed heads, limits, recipe."""
    return filled(
        "card.md.jinja",
        {
            "metadata": _metadata(manifest),
            "recipe": plain(manifest.recipe),
            "what_it_is": [
                _what_it_is(manifest),
                *(f"**{plain(sentence)}**" for sentence in caveats(manifest)),
            ],
            "results": _results(manifest),
            "deployment": plain(
                " ".join([*missing_sentences(manifest), *deployment_sentences(manifest)])
            ),
            "reading": _reading(manifest),
            "usage": usage_section(manifest),
            "medium": manifest.medium.name,
            "scored_by": plain(scored_by(manifest.attribution)),
            "removed": _removed(manifest),
            "crossed_out": manifest.heads.removed_count > 0,
            "whose": "" if manifest.generation is None else "the encoder's ",
            "limits": _limits(manifest),
            "citations": [plain(source) for source in citations(manifest)],
            "recipe_yaml": fenced(recipe_yaml, "yaml"),
        },
    )


def _metadata(manifest: Manifest) -> str:
    """What the Hub reads: with the metric of every variant that lies there, as a model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    pipeline_tag, metric = USAGES[manifest.task].pipeline_tag, manifest.metric
    generation, model = manifest.generation, manifest.model
    language = None if generation is None else generation.language
    results = [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=manifest.validation.kind,
            dataset_name=f"validation data of {manifest.recipe}",
            # The Hub's metric ids are lower-case.
            metric_type=metric.name.lower(),
            metric_name=f"{metric.name} of {one.name}",
            metric_value=round(one.metric.value, 6),
            metric_args={
                "interval_95": [round(bound, 6) for bound in one.metric.interval],
                "n": one.metric.n,
            },
        )
        for one in manifest.variants
        if not one.is_rival
    ]
    licence = manifest.model.licence
    data = ModelCardData(
        license=None if licence is None else licence.id,
        license_name=None if licence is None else licence.name,
        license_link=None if licence is None else licence.link,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=["hibprune", "pruned", "onnx", model.family],
        metrics=[metric.name.lower()],
        language=None if language is None else language_code(language),
        base_model=model.source if model.on_hub else None,
        model_name=manifest.recipe,
        eval_results=results,
    )
    return str(data.to_yaml())


def _what_it_is(manifest: Manifest) -> str:
    revision = f" at revision {plain(manifest.model.revision)}" if manifest.model.revision else ""
    metric = wording.metric_sentence(manifest)
    return (
        f"{plain(manifest.model.source)}{revision} for {plain(manifest.task)}, made smaller by "
        f"{wording.means(manifest)} with hibprune; {wording.training_sentence(manifest)}. "
        f"{wording.heads_sentence(manifest)} {metric}"
    )


def _results(manifest: Manifest) -> str:
    name = capitalised(wording.metric_name(manifest.metric.name))
    header = ["", name, "ONNX", *(f"speed, {one}" for one in speed_headings(manifest))]
    rows = [
        [
            f"{row.name} ({row.done})",
            f"{row.metric} ({row.interval})",
            row.size,
            *(
                f"{speed} ({interval})" if interval else speed
                for speed, interval in zip(row.speeds, row.speed_intervals, strict=True)
            ),
        ]
        for row in variant_rows(manifest)
    ]
    return table("l" + "r" * (len(header) - 1), header, rows)


def _reading(manifest: Manifest) -> str:
    """How to read the results."""
    settings = "; ".join(wording.by_setting(manifest.original.latency))
    parts = [
        "Ranges are 95 % intervals; the metric is over "
        f"{manifest.medium.counted(manifest.metric.n)}.",
        transcripts_sentence(manifest.metric.transcripts),
        f"Speed is against the original, by medians ({plain(settings)}) on "
        f"{plain(manifest.machine.processor)}."
        if settings
        else "",
        plain(gates_sentence(manifest.gates)),
    ]
    return " ".join(filter(None, parts))


def _removed(manifest: Manifest) -> str:
    """Which heads went, the encoder's first; empty if none did."""
    decoders = {
        f"decoder's {stack}, ": {} if units is None else units.removed
        for stack, units in (
            ("self-attention", manifest.decoder_heads),
            ("cross-attention", manifest.cross_heads),
        )
    }
    rows = [
        (f"{stack}{layer}", ", ".join(map(str, indices)))
        for stack, removed in {"": manifest.heads.removed, **decoders}.items()
        for layer, indices in sorted(removed.items())
        if indices
    ]
    return table("ll", ["layer", "removed heads"], rows) if rows else ""


def _limits(manifest: Manifest) -> list[str]:
    medium = manifest.medium
    limits = [
        caution(manifest),
        f"The metric holds for the {manifest.metric.n} validation {medium.many}; try other "
        f"{medium.variety} before deploying.",
        "No training followed the removal."
        if manifest.recovery is None
        else "Training followed the removal: towards the original, not towards better answers.",
        _licence_sentence(manifest),
    ]
    if manifest.original.latency:
        limits.insert(2, "Latency holds for the machine and settings named above.")
    return limits


def _licence_sentence(manifest: Manifest) -> str:
    licence = manifest.model.licence
    if licence is None:
        return (
            "Licence and intended use are those of the original model; no licence is stated in its "
            "directory."
        )
    stated = "the recipe" if licence.taken_from == "recipe" else f"its {plain(licence.taken_from)}"
    return (
        "Licence and intended use are those of the original model; the licence is "
        f"{plain(licence.name or licence.id)}, as {stated} states."
    )

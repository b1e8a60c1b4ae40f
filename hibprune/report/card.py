"""`README.md` of the directory: a model card as the Hugging Face Hub reads it."""

from __future__ import annotations

import yaml

from hibprune.records.manifest import Manifest
from hibprune.report import wording
from hibprune.report.caveats import caveats
from hibprune.report.gates import gates_sentence
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.numbers import capitalised
from hibprune.report.ranking import scored_by
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
    sections = [
        _front_matter(manifest),
        f"# {plain(manifest.recipe)}",
        _what_it_is(manifest),
        *(f"**{plain(sentence)}**" for sentence in caveats(manifest)),
        _results(manifest),
        usage_section(manifest),
        _removed(manifest),
        _limits(manifest),
        "## Recipe\n\nMade by `hibprune run` with this recipe; its paths start from where it lay:"
        f"\n\n{fenced(recipe_yaml, 'yaml')}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(manifest: Manifest) -> str:
    fields: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": USAGES[manifest.task].pipeline_tag,
        "tags": ["hibprune", "pruned", "onnx", manifest.model.family],
        # The Hub's metric ids are lower-case.
        "metrics": [manifest.metric.name.lower()],
    }
    if manifest.generation is not None and manifest.generation.language is not None:
        fields["language"] = language_code(manifest.generation.language)
    if manifest.model.on_hub:
        fields["base_model"] = manifest.model.source
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _what_it_is(manifest: Manifest) -> str:
    revision = f" at revision {plain(manifest.model.revision)}" if manifest.model.revision else ""
    metric = wording.metric_sentence(manifest)
    return (
        f"{plain(manifest.model.source)}{revision} for {plain(manifest.task)}, made smaller by "
        f"removing attention heads with hibprune; {wording.training_sentence(manifest)}. "
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
    settings = "; ".join(wording.by_setting(manifest.original.latency))
    latency = (
        f" Speed is against the original, by medians ({plain(settings)}) on "
        f"{plain(manifest.machine.processor)}."
        if settings
        else ""
    )
    sentence = transcripts_sentence(manifest.metric.transcripts)
    rules = f" {sentence}" if sentence else ""
    return "\n\n".join(
        [
            "## Results",
            table("l" + "r" * (len(header) - 1), header, rows),
            plain(" ".join([*missing_sentences(manifest), *deployment_sentences(manifest)])),
            f"Ranges are 95 % intervals; the metric is over "
            f"{manifest.medium.counted(manifest.metric.n)}.{rules}{latency} "
            f"{plain(gates_sentence(manifest.gates))} All figures, pictures and limits: "
            "[report.md](report.md).",
            "![Score of every head, the removed ones crossed out](figures/heads.png)",
        ]
    )


def _removed(manifest: Manifest) -> str:
    if not manifest.heads.removed_count:
        return "## Removed heads\n\nNone."
    rows = [
        (layer, ", ".join(map(str, indices)))
        for layer, indices in sorted(manifest.heads.removed.items())
        if indices
    ]
    return (
        "## Removed heads\n\nBy their original indices, layer 0 nearest the "
        f"{manifest.medium.name}; scored by "
        f"{plain(scored_by(manifest.attribution))}.\n\n"
        f"{table('ll', ['layer', 'removed heads'], rows)}"
    )


def _limits(manifest: Manifest) -> str:
    medium = manifest.medium
    limits = [
        caution(manifest),
        f"The metric holds for the {manifest.metric.n} validation {medium.many}; try other "
        f"{medium.variety} before deploying.",
        "No training followed the removal of heads.",
        "Licence and intended use are those of the original model.",
    ]
    if manifest.original.latency:
        limits.insert(2, "Latency holds for the machine and settings named above.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)])

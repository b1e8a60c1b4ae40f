"""What the repository ships: recipes that check out, a quickstart that is what it says it is."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands import invoke
from rich.console import Console
from standin import StandIn
from torch import Tensor

from hibprune.cli import main
from hibprune.data import AudioFile, DurationLimits, content_digest, read_waveform
from hibprune.models.attention import heads_of, silenced
from hibprune.recipe import load_recipe
from hibprune.records.manifest import Manifest
from hibprune.report.terminal import closing_table

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
QUICKSTART = ROOT / "recipes/quickstart"

# Table 1 of the paper: β and steps; learning rate 0.1 and λ 0.9 throughout.
TABLE_1 = {
    "keyword-spotting": (1.0, 200),
    "speaker-identification": (0.1, 200),
    "intent-classification": (1.0, 100),
    "asr-ctc": (10.0, 100),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestRecipes:
    def test_passes_check_offline(self, path: Path) -> None:
        result = CliRunner().invoke(main, ["check", str(path), "--offline"])
        assert result.exit_code == 0, result.output
        assert result.output.endswith(f"{path}: ok\n")

    def test_the_published_form_is_a_word_away(self, path: Path) -> None:
        if load_recipe(path).recipe.task.kind not in TABLE_1:
            return  # The paper has no encoder–decoder models and none of text.
        recipe = load_recipe(path, ["attribution={method: hib, paper: true}"]).recipe
        method: Any = recipe.attribution.for_task(recipe.task.kind)
        assert recipe.calibration.samples == 200
        assert (method.beta, method.steps) == TABLE_1[recipe.task.kind]
        assert (method.learning_rate, method.noise) == (0.1, 0.9)
        assert (method.bottleneck, method.score) == ("paper", "similarity")

    def test_is_named_as_its_file(self, path: Path) -> None:
        assert load_recipe(path).recipe.name == path.stem


def test_the_text_recipe_fits_data_of_sst2s_shape(
    stand_ins: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its columns, class names and splits, on a stand-in of the model."""
    import datasets

    stand_in = StandIn(stand_ins("text_classification"))
    features = datasets.Features(
        {
            "idx": datasets.Value("int32"),
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )
    splits = {}
    for split, rows in (("train", "calibration"), ("validation", "validation")):
        table = [
            {"idx": number, "sentence": row["text"], "label": row["label"].lower()}
            for number, row in enumerate(stand_in.rows(rows))
        ]
        splits[split] = datasets.Dataset.from_list(table, features=features)
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "sst2"))
    overrides = {
        "model.source": stand_in.model,
        "calibration.source.path": tmp_path / "sst2",
        "validation.source.path": tmp_path / "sst2",
        "calibration.samples": 20,
        "attribution.steps": 2,
        "benchmark.tokens": "[16]",
        "export.tokens": "[16]",
        "gates": "{}",
    }
    result = invoke(
        "run", ROOT / "recipes/text_classification.yaml", "--output", tmp_path / "out", "--quiet",
        *(f"--set={key}={value}" for key, value in overrides.items()),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "accuracy 100.00%" in result.stdout


def rows(split: str) -> list[dict[str, str]]:
    lines = (QUICKSTART / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def spotter() -> Any:
    from transformers import AutoModelForAudioClassification

    return AutoModelForAudioClassification.from_pretrained(
        QUICKSTART / "model", dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def validation() -> tuple[Tensor, list[str]]:
    """Model inputs of every validation clip, by plain soundfile and the extractor's formula."""
    clips, labels = [], []
    for row in rows("validation"):
        audio = AudioFile(QUICKSTART / row["audio"])
        sound = read_waveform(audio, 16_000, DurationLimits())
        clips.append((sound - sound.mean()) / np.sqrt(sound.var() + 1e-7))
        labels.append(row["label"])
    return torch.tensor(np.stack(clips)), labels


def accuracy(model: Any, validation: tuple[Tensor, list[str]]) -> float:
    clips, labels = validation
    with torch.inference_mode():
        logits = torch.cat([model(batch).logits for batch in clips.split(48)])
    said = [model.config.id2label[i] for i in logits.argmax(-1).tolist()]
    return sum(a == b for a, b in zip(said, labels, strict=True)) / len(labels)


class TestQuickstart:
    def test_no_voice_and_no_clip_is_on_both_sides(self) -> None:
        calibration, validation = rows("calibration"), rows("validation")
        assert not {r["voice"] for r in calibration} & {r["voice"] for r in validation}
        digests = [
            {content_digest(AudioFile(QUICKSTART / row["audio"])) for row in side}
            for side in (calibration, validation)
        ]
        assert not digests[0] & digests[1]
        assert len(validation) >= 400
        assert len(calibration) >= 200

    def test_model_and_clips_are_at_most_15_mb(self) -> None:
        parts = [*(QUICKSTART / "model").rglob("*"), *(QUICKSTART / "clips").rglob("*")]
        assert sum(part.stat().st_size for part in parts if part.is_file()) <= 15e6

    def test_spots_95_percent_on_voices_never_heard(
        self, spotter: Any, validation: tuple[Tensor, list[str]]
    ) -> None:
        assert accuracy(spotter, validation) >= 0.95

    def test_its_heads_matter(self, spotter: Any, validation: tuple[Tensor, list[str]]) -> None:
        heads = heads_of(spotter)
        assert len(heads) == 36
        # Every fourth clip: all words and all voices, which come in turn.
        some = validation[0][::4], validation[1][::4]
        accuracies = []
        for seed in range(3):
            drawn = np.random.default_rng(seed).permutation(len(heads))[:24]
            with silenced(spotter, [heads[i] for i in drawn]):
                accuracies.append(accuracy(spotter, some))
        assert accuracy(spotter, some) - np.mean(accuracies) >= 0.10


class TestReadme:
    TEXT = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""

    def test_names_every_command(self) -> None:
        for command in main.commands:
            assert f"hibprune {command}" in self.TEXT, command

    def test_files_it_links_to_are_there(self) -> None:
        links = re.findall(r"\]\((?!http)([^)#]+)\)", self.TEXT)
        assert links
        for link in links:
            assert (ROOT / link).exists(), link

    def test_its_table_is_that_of_the_run_that_is_kept(self) -> None:
        """`hibprune run recipes/quickstart.yaml --json > recipes/quickstart/run.json`"""
        manifest = Manifest.model_validate_json((QUICKSTART / "run.json").read_text())
        console = Console(width=80, file=io.StringIO(), no_color=True)
        with console.capture() as capture:
            console.print(closing_table(manifest))
        printed = "\n".join(line.rstrip() for line in capture.get().splitlines())
        title, table, _, words, _ = printed.strip().split("\n\n")
        assert f"{title}\n\n{table}\n\n{words}\n" in self.TEXT

    def test_its_recipe_is_one(self, tmp_path: Path) -> None:
        (example,) = re.findall(r"```yaml\n(.*?)```", self.TEXT, re.DOTALL)
        path = tmp_path / "my_spotter.yaml"
        path.write_text(example)
        assert load_recipe(path).recipe.name == "my_spotter"

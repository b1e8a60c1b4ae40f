"""An exported directory is right for whoever opens it, by whatever path, without hibprune."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interpreters
import pytest
from commands import invoke
from standin import STAND_INS, StandIn

SPEAKERS = tuple(name for name in STAND_INS if name.startswith("encoder_decoder"))

ONE_SPEAKER = tuple(
    pytest.param(name, marks=() if name == SPEAKERS[0] else pytest.mark.slow) for name in SPEAKERS
)

# Beside the directories, from where their paths start.
GENERATES = """
import json, sys
import soundfile
from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
from transformers import AutoProcessor

said = {}
for path, clips in json.loads(sys.argv[1]).items():
    model = ORTModelForSpeechSeq2Seq.from_pretrained(path, subfolder="onnx")
    processor = AutoProcessor.from_pretrained(path)
    said[path] = []
    for clip in clips:
        sound, rate = soundfile.read(clip)
        inputs = processor(sound, sampling_rate=rate, return_tensors="pt")
        tokens = model.generate(**inputs)
        said[path] += processor.batch_decode(tokens, skip_special_tokens=True)
assert "hibprune" not in sys.modules
print(json.dumps(said))
"""

# In every directory, one after the other: first those that may not know of hibprune.
RUNS_SNIPPETS = """
import contextlib, io, json, os, sys

given = json.loads(sys.argv[1])
said = {name: [] for name in given}
for place in (0, 1):
    for name, snippets in given.items():
        os.chdir(name)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(snippets[place], {})
        said[name].append(printed.getvalue())
        os.chdir("..")
    assert place == 1 or "hibprune" not in sys.modules
print(json.dumps(said))
"""


def fresh_process(program: str, argument: Any, working: Path) -> Any:
    """What a program prints as JSON, in a process of its own."""
    told = interpreters.run(program, json.dumps(argument), ready="transformers", cwd=working)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def working(finished: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the exported ones in it, each by the name of its stand-in."""
    directory = tmp_path_factory.mktemp("working")
    for name in STAND_INS:
        shutil.copytree(finished(name), directory / name)
    return directory


def exported_predictions(output: Path) -> list[str]:
    lines = (output / "predictions/pruned.jsonl").read_text().splitlines()
    return [json.loads(line)["prediction"] for line in lines]


class TestEncoderAndDecoder:
    CLIPS = 2

    @pytest.fixture(scope="class")
    def said(self, working: Path, stand_ins: Callable[[str], Path]) -> dict[str, list[str]]:
        """What the graphs say without being told anything, by the path they are opened by."""
        paths = {}
        for name in SPEAKERS:
            stand_in = StandIn(stand_ins(name))
            clips = [str(stand_in.clip("validation", number)) for number in range(self.CLIPS)]
            absolute = str(working / name)
            for path in (name, f"./{name}/", f"{name}/../{name}", absolute, f"{absolute}/"):
                paths[path] = clips
        result: dict[str, list[str]] = fresh_process(GENERATES, paths, working)
        return result

    @pytest.mark.parametrize("name", SPEAKERS)
    def test_they_say_what_was_measured(
        self, working: Path, said: dict[str, list[str]], name: str
    ) -> None:
        wanted = exported_predictions(working / name)[: self.CLIPS]
        assert any(wanted)
        of_name = {path: texts for path, texts in said.items() if path.rstrip("/").endswith(name)}
        assert len(of_name) == 5
        for path, texts in of_name.items():
            assert [text.strip() for text in texts] == wanted, path

    @pytest.mark.parametrize("name", SPEAKERS)
    def test_generation_settings_lie_where_optimum_looks(self, working: Path, name: str) -> None:
        settings = (working / name / "generation_config.json").read_text()
        assert (working / name / "onnx/generation_config.json").read_text() == settings
        told = json.loads(settings)
        assert told["max_new_tokens"] == 12
        if name == "encoder_decoder_of_languages":
            assert (told["language"], told["task"]) == ("de", "transcribe")

    @pytest.mark.parametrize("name", ONE_SPEAKER)
    def test_predict_says_the_same_by_any_path(
        self,
        working: Path,
        stand_ins: Callable[[str], Path],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        clip = StandIn(stand_ins(name)).clip("validation", 1)
        wanted = exported_predictions(working / name)[1]
        monkeypatch.chdir(working)
        for path in (name, f"{name}/", working / name):
            assert invoke("predict", path, clip).stdout == f"{clip}: {wanted}\n"
        monkeypatch.chdir(working / name)
        result = invoke("predict", ".", os.path.relpath(clip), "--json")
        assert json.loads(result.stdout)["prediction"] == wanted

    @pytest.mark.parametrize("name", ONE_SPEAKER)
    def test_other_graphs_further_down_are_not_taken(
        self, working: Path, stand_ins: Callable[[str], Path], tmp_path: Path, name: str
    ) -> None:
        """As a run that was killed leaves them; Optimum searches folders in no certain order."""
        output = Path(shutil.copytree(working / name, tmp_path / name))
        for number in range(20):
            decoy = output / f".scratch.{number}.partial/onnx"
            decoy.mkdir(parents=True)
            for graph in ("encoder_model.onnx", "decoder_model_merged.onnx"):
                (decoy / graph).write_bytes(b"not a graph")
        clip = StandIn(stand_ins(name)).clip("validation", 1)
        result = invoke("predict", output, clip)
        assert result.stdout == f"{clip}: {exported_predictions(output)[1]}\n", result.output


class TestCard:
    """Every snippet of every task's card, from inside the directory."""

    LIMITED = "limited"
    """A Moonshine whose transcripts are limited by the seconds of sound, too."""

    @pytest.fixture(scope="class")
    def directories(
        self, working: Path, stand_ins: Callable[[str], Path]
    ) -> dict[str, tuple[Path, StandIn]]:
        """By name, an exported directory with a clip of its own in it."""
        moonshine = StandIn(stand_ins("encoder_decoder_on_waveforms"))
        result = invoke(
            "run", moonshine.recipe, "--output", working / self.LIMITED, "--quiet",
            "--set", "task.max_tokens_per_second=15", "--set", "validation.limit=2",
            "--set", "attribution={method: magnitude}",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        made = {name: (working / name, StandIn(stand_ins(name))) for name in STAND_INS}
        made[self.LIMITED] = (working / self.LIMITED, moonshine)
        for output, stand_in in made.values():
            if stand_in.clip("validation", 0).exists():
                shutil.copy(stand_in.clip("validation", 0), output / "clip.wav")
        return made

    @pytest.fixture(scope="class")
    def said(
        self, directories: dict[str, tuple[Path, StandIn]], working: Path
    ) -> dict[str, list[str]]:
        """What the Python snippets print: Optimum's, at times ONNX Runtime's, torch's."""
        snippets = {name: blocks(output, "python") for name, (output, _) in directories.items()}
        assert {name for name, of_one in snippets.items() if len(of_one) == 3} == {
            "keyword_spotting"
        }
        assert all(len(of_one) in (2, 3) for of_one in snippets.values())
        result: dict[str, list[str]] = fresh_process(RUNS_SNIPPETS, snippets, working)
        return result

    @pytest.mark.parametrize("name", [*STAND_INS, LIMITED])
    def test_snippets_say_what_the_command_line_says(
        self,
        directories: dict[str, tuple[Path, StandIn]],
        said: dict[str, list[str]],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        output, stand_in = directories[name]
        (command,) = blocks(output, "sh")
        first, *arguments = shlex.split(command)
        assert first == "hibprune"
        monkeypatch.chdir(output)
        result = invoke(*arguments, "--json")
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)["prediction"]
        for printed in said[name]:
            if name == "intents":
                assert printed.startswith("tensor([[")
            elif isinstance(told, str) and printed.startswith("["):
                assert [text.strip() for text in ast.literal_eval(printed)] == [told]
            else:
                assert printed.strip() == told
        if name != "text_classification":
            clips = [row["audio"] for row in stand_in.rows("validation")]
            assert clips[0] == "validation/0.wav"
            if name != self.LIMITED:
                assert exported_predictions(output)[0] == told

    def test_language_and_limits_are_in_the_snippets(self, directories: dict[str, Any]) -> None:
        given = {
            "encoder_decoder": "(**inputs, max_new_tokens=12)",
            "encoder_decoder_of_languages": '(**inputs, language="de", max_new_tokens=12)',
            self.LIMITED: "max_new_tokens=min(12, max(1, int(len(sound) / rate * 15))))",
        }
        for name, words in given.items():
            for snippet in blocks(directories[name][0], "python"):
                assert words in snippet
        front_matter = (directories["encoder_decoder_of_languages"][0] / "README.md").read_text()
        assert "\nlanguage: de\n" in front_matter

    def test_the_card_says_what_the_graphs_take(self, directories: dict[str, Any]) -> None:
        cautions = {
            "encoder_decoder": "Every clip is filled up to 1 s with silence",
            "encoder_decoder_on_waveforms": "takes `input_values` and an `attention_mask`",
            "speech_recognition": "takes `input_values` only",
        }
        for name, caution in cautions.items():
            card = (directories[name][0] / "README.md").read_text()
            assert [other for other in cautions.values() if other in card] == [caution]


def blocks(output: Path, language: str) -> list[str]:
    """The snippets of a card in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)

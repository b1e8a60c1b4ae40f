"""`hibprune verify` and `show`: what a deployer asks of a directory that was copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from commands import faults, invoke
from in_node import needs, said_by_the_card
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, AutoTokenizer


@pytest.fixture
def copied(finished: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished("keyword_spotting"), tmp_path / "copy"))


@pytest.fixture
def copied_with_int8(finished_in_int8: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a finished run with int8."""
    return Path(shutil.copytree(finished_in_int8("keyword_spotting"), tmp_path / "copy"))


class TestExample:
    def test_its_tensors_are_those_of_the_feature_extractor_and_its_logits_those_of_pytorch(
        self, finished_in_int8: Callable[[str], Path]
    ) -> None:
        place = finished_in_int8("keyword_spotting")
        sound, rate = soundfile.read(place / "example/input.wav", dtype="float32")
        extractor = AutoFeatureExtractor.from_pretrained(place)
        inputs = extractor(sound, sampling_rate=rate, return_tensors="pt")
        kept = np.load(place / "example/input_values.npy")
        np.testing.assert_allclose(kept, inputs["input_values"].numpy(), atol=1e-6)
        model = AutoModelForAudioClassification.from_pretrained(place).eval()
        logits = model(**inputs).logits.detach().numpy()
        np.testing.assert_allclose(np.load(place / "example/pruned.npy"), logits, atol=1e-4)

    def test_lower_precision_gives_what_its_own_graph_gives(
        self, finished_in_int8: Callable[[str], Path]
    ) -> None:
        place = finished_in_int8("keyword_spotting")
        session = onnxruntime.InferenceSession(place / "onnx/model_quantized.onnx")
        (given,) = session.run(
            ["logits"], {"input_values": np.load(place / "example/input_values.npy")}
        )
        np.testing.assert_array_equal(np.load(place / "example/pruned-int8.npy"), given)

    def test_of_a_text_it_is_what_the_tokenizer_makes_of_it(
        self, finished: Callable[[str], Path]
    ) -> None:
        place = finished("text_classification")
        text = (place / "example/input.txt").read_text().strip()
        encoded = AutoTokenizer.from_pretrained(place)([text])
        assert np.load(place / "example/input_ids.npy").tolist() == encoded["input_ids"]

    def test_the_manifest_says_what_each_variant_says(
        self, finished_in_int8: Callable[[str], Path]
    ) -> None:
        place = finished_in_int8("keyword_spotting")
        manifest = json.loads((place / "manifest.json").read_text())
        said = invoke("predict", place, place / "example/input.wav", "--json").stdout
        assert manifest["example"]["outputs"]["pruned"]["says"] == json.loads(said)["prediction"]
        assert {"example/input.wav", "example/pruned.npy"} <= set(manifest["files"])


class TestVerify:
    def test_a_copy_in_order(self, copied_with_int8: Path) -> None:
        result = invoke("verify", copied_with_int8)
        assert result.exit_code == 0, result.output
        files, pruned, quantized = result.stdout.splitlines()
        assert files.startswith("files: ")
        assert files.endswith(" as the run left them")
        assert pruned.startswith("pruned: 0.0e+00 of the largest logit from the run's, says '")
        assert quantized.startswith("pruned-int8: ")

    @pytest.mark.parametrize("name", ["encoder_decoder", "text_classification"])
    def test_other_tasks(self, name: str, finished: Callable[[str], Path]) -> None:
        result = invoke("verify", finished(name))
        assert result.exit_code == 0, result.output
        assert "pruned: " in result.stdout

    def test_what_a_deployer_needs_is_enough(self, copied_with_int8: Path) -> None:
        for name in ("figures", "predictions", "steps"):
            shutil.rmtree(copied_with_int8 / name)
        for name in ("report.md", "README.md", "model.safetensors", "onnx/model_quantized.onnx"):
            (copied_with_int8 / name).unlink()
        result = invoke("verify", copied_with_int8)
        assert result.exit_code == 0, result.output
        assert "pruned-int8: not in this copy" in result.stdout
        assert "model.safetensors: not in this copy" in result.stdout

    def test_a_graph_of_another_model_is_found_by_its_digest_and_by_what_it_gives(
        self, copied: Path
    ) -> None:
        path = copied / "onnx/model.onnx"
        model = onnx.load(path)
        for weight in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weight)
            if values.ndim == 2:
                changed = onnx.numpy_helper.from_array((values * 1.5).astype(values.dtype))
                weight.raw_data = changed.raw_data
        onnx.save(model, path)
        one, other = faults(invoke("verify", copied))
        assert one == f"{copied}: onnx/model.onnx: not as the run left it: copy it again"
        assert other.startswith(f"{copied}: pruned: ")
        assert "over 0.001, so that another model or runtime is at work" in other

    def test_other_preprocessing(self, copied: Path) -> None:
        path = copied / "preprocessor_config.json"
        settings = json.loads(path.read_text())
        settings["do_normalize"] = not settings["do_normalize"]
        path.write_text(json.dumps(settings))
        found = faults(invoke("verify", copied))
        assert f"{copied}: preprocessor_config.json: not as the run left it: copy it again" in found
        assert any("becomes other tensors than those beside it" in line for line in found)

    def test_a_file_that_was_cut_off(self, copied: Path) -> None:
        path = copied / "onnx/model.onnx"
        path.write_bytes(path.read_bytes()[:1000])
        one, other = faults(invoke("verify", copied))
        assert "onnx/model.onnx: not as the run left it" in one
        assert "pruned: " in other
        assert "cannot load it" in other

    @pytest.mark.parametrize("name", ["config.json", "example/input.wav", "example/pruned.npy"])
    def test_what_is_missing(self, name: str, copied: Path) -> None:
        (copied / name).unlink()
        assert any(f"{name}: " in line for line in faults(invoke("verify", copied)))

    def test_an_array_is_never_unpickled(self, copied: Path, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return (open, (str(tmp_path / "trap"), "w"))

        np.save(copied / "example/pruned.npy", np.array([Trap()], dtype=object), allow_pickle=True)
        found = faults(invoke("verify", copied))
        assert any("no array that can be read" in line for line in found)
        assert not (tmp_path / "trap").exists()

    @pytest.mark.parametrize("place", ["/etc/passwd", "../outside.npy", "example/link.npy"])
    def test_nothing_outside_is_read(self, place: str, copied: Path) -> None:
        (copied.parent / "outside.npy").write_bytes((copied / "example/pruned.npy").read_bytes())
        (copied / "example/link.npy").symlink_to(copied.parent / "outside.npy")
        path = copied / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["example"]["outputs"]["pruned"]["file"] = place
        path.write_text(json.dumps(manifest))
        found = faults(invoke("verify", copied))
        assert any("no array that can be read" in line for line in found)

    def test_no_run_at_all(self, tmp_path: Path) -> None:
        (line,) = faults(invoke("verify", tmp_path))
        assert line.startswith(f"{tmp_path}: no finished hibprune run")


class TestShow:
    def test_the_table_that_the_run_closed_with(self, finished: Callable[[str], Path]) -> None:
        result = invoke("show", finished("keyword_spotting"))
        assert result.exit_code == 0, result.output
        assert "attention heads" in result.stdout
        assert "pruned" in result.stdout

    def test_as_json_it_is_the_manifest(self, finished: Callable[[str], Path]) -> None:
        place = finished("keyword_spotting")
        said = invoke("show", place, "--json").stdout
        assert json.loads(said) == json.loads((place / "manifest.json").read_text())

    def test_no_run_at_all(self, tmp_path: Path) -> None:
        faults(invoke("show", tmp_path / "nothing"))


@needs("onnxruntime-node")
def test_the_cards_javascript_says_what_predict_says(copied: Path, tmp_path: Path) -> None:
    clip = copied / "example/input.wav"
    told = invoke("predict", copied, clip, "--json").stdout
    assert said_by_the_card(copied, clip, tmp_path) == json.loads(told)["prediction"]


def test_show_opens_the_page_in_a_browser(
    finished: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def browser(address: str) -> bool:
        opened.append(address)
        return len(opened) == 1

    monkeypatch.setattr("webbrowser.open", browser)
    place = finished("keyword_spotting")
    result = invoke("show", place, "--open")
    assert (result.exit_code, result.stderr) == (0, "")
    assert opened == [(place / "report.html").resolve().as_uri()]
    without = invoke("show", place, "--open", "--json")
    assert without.stderr == (f"no browser is to be had here: open {place}/report.html yourself\n")
    assert json.loads(without.stdout)["schema_version"] == 2
    copied = tmp_path / "copied"
    copied.mkdir()
    shutil.copy(place / "manifest.json", copied)
    assert faults(invoke("show", copied, "--open")) == [
        f"{copied}/report.html: no such page: run again, or copy it along"
    ]

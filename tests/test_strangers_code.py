"""A stranger's checkpoint: none of its code runs, nothing is fetched for it, nothing else is read.

Every test has something that must not happen leave a trace, and looks for the trace.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from commands import invoke, refused, run
from standin import StandIn
from tiny_models import TINY_MODELS, TinyModel

from hibprune.models.checkpoint import load_checkpoint
from hibprune.models.source import (
    CONFIGURATION_FILES,
    EXTRACTOR_FILES,
    TOKENIZER_FILES,
    ModelSource,
)
from hibprune.models.staging import StagedCheckpoint, taken_of
from hibprune.records.medium import Length
from hibprune.tasks.ctc import SpeechRecognitionCTC
from hibprune.tasks.seq2seq import SpeechRecognitionSeq2Seq

SPEAKING = ("encoder_decoder", "encoder_decoder_on_waveforms")
CPU = torch.device("cpu")
CTC = SpeechRecognitionCTC(kind="asr-ctc")
SEQ2SEQ = SpeechRecognitionSeq2Seq(kind="asr-seq2seq", max_new_tokens=12)
SMALL = (*CONFIGURATION_FILES, *EXTRACTOR_FILES, *TOKENIZER_FILES)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the network was asked")

    def between_processes_only(self: socket.socket, address: Any) -> Any:
        return connect(self, address) if self.family == socket.AF_UNIX else refuse()

    monkeypatch.setattr(socket.socket, "connect", between_processes_only)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def plant(path: Path, trace: Path) -> None:
    """A Python file that leaves a trace when it is run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("generate", "Config", "Model", "Extractor", "Tokenizer")
    path.write_text(
        f"open({str(trace)!r}, 'w').close()\n" + "\n".join(f"class {name}: ..." for name in names)
    )


def change(path: Path, **values: Any) -> None:
    """Set values in a settings file."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


# Code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPEAKING)
def test_a_way_to_generate_that_a_checkpoint_brings_along_is_not_run(
    name: str, stand_in_of: Callable[[str], StandIn], tmp_path: Path
) -> None:
    """transformers runs it at loading, whatever it is told of trust."""
    stand_in, trace = stand_in_of(name), tmp_path / "ran"
    plant(stand_in.model / "custom_generate/generate.py", trace)
    (stand_in.model / "custom_generate/requirements.txt").write_text("not-installed-anywhere\n")
    assert invoke("check", stand_in.recipe).exit_code == 0
    load_checkpoint(ModelSource(source="model"), SEQ2SEQ, stand_in.root, CPU)
    assert not trace.exists()


def test_nor_is_that_in_the_directory_of_a_run(
    finished: Callable[[str], Path], stand_ins: Callable[[str], Path], tmp_path: Path
) -> None:
    """Neither when the pruned model is taken up again nor by `predict`."""
    output = Path(shutil.copytree(finished("encoder_decoder"), tmp_path / "out"))
    trace = tmp_path / "ran"
    plant(output / "custom_generate/generate.py", trace)
    plant(output / "onnx/custom_generate/generate.py", trace)
    source = ModelSource(source=str(output))
    load_checkpoint(source, SEQ2SEQ, tmp_path, CPU)
    clip = stand_ins("encoder_decoder") / "validation/0.wav"
    result = invoke("predict", output, clip)
    assert result.exit_code == 0, result.output
    assert not trace.exists()


CLASSES = {
    "AutoConfig": "code.Config",
    "AutoModelForCTC": "code.Model",
    "AutoFeatureExtractor": "code.Extractor",
    "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"],
    "AutoProcessor": "elsewhere/repository--code.Processor",
}


@pytest.mark.parametrize("file", ["config", "preprocessor_config", "tokenizer_config"])
def test_classes_that_a_checkpoint_brings_along_are_not_imported(
    file: str, stand_in_of: Callable[[str], StandIn], tmp_path: Path
) -> None:
    stand_in, trace = stand_in_of("speech_recognition"), tmp_path / "ran"
    plant(stand_in.model / "code.py", trace)
    change(
        stand_in.model / f"{file}.json",
        auto_map=CLASSES,
        custom_pipelines={"x": {"impl": "code.Model"}},
    )
    assert invoke("check", stand_in.recipe).exit_code == 0
    assert not trace.exists()


def test_what_a_run_leaves_behind_asks_for_no_code_either(
    stand_in: StandIn, tmp_path: Path
) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        change(stand_in.model / file, auto_map=CLASSES, attn_implementation="nobody/kernel")
    result = run(stand_in, "--quiet")
    assert result.exit_code == 0, result.output
    for path in (stand_in.root / "out").glob("*.json"):
        assert "code.Model" not in path.read_text(), path
        assert "nobody/kernel" not in path.read_text(), path


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["nobody/kernel", "flash_attention_2", "nonsense", {"": "eager"}])
def test_a_kernel_that_a_configuration_asks_for_is_not_fetched(
    key: str, value: Any, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("transformers.modeling_utils.load_and_register_kernel", fetched.append)
    change(stand_in.model / "config.json", **{key: value})
    result = invoke("check", stand_in.recipe)
    assert (result.exit_code, fetched) == (0, []), result.output


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "high"},
        {"force_words_ids": [[5]]},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"custom_generate": "nobody/decoding", "trust_remote_code": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_ways_to_decode_that_live_on_the_hub_are_not_taken(
    settings: dict[str, Any],
    file: str,
    stand_in_of: Callable[[str], StandIn],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in = stand_in_of("encoder_decoder")
    if file == "config.json":
        # Else transformers reads the other file alone.
        kept = json.loads((stand_in.model / "generation_config.json").read_text())
        settings = {**settings, "suppress_tokens": kept["suppress_tokens"]}
    change(stand_in.model / file, **settings)
    fetched: list[Any] = []
    load = transformers.GenerationMixin.load_custom_generate

    def recorded(self: Any, where: Any, *rest: Any, **options: Any) -> Any:
        if not Path(where).is_dir():
            fetched.append(where)
        return load(self, where, *rest, **options)

    monkeypatch.setattr(transformers.GenerationMixin, "load_custom_generate", recorded)
    result = invoke("check", stand_in.recipe)
    assert (result.exit_code, fetched) == (0, []), result.output


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": True, "temperature": 9.0}, {"num_beams": 3, "length_penalty": -9.0}],
    ids=["sampling", "beams"],
)
def test_decoding_is_greedy_whatever_a_checkpoint_prefers(
    settings: dict[str, Any], stand_in_of: Callable[[str], StandIn]
) -> None:
    """The recipe's reference says so, and ONNX and PyTorch have to say the same."""
    stand_in = stand_in_of("encoder_decoder")
    change(stand_in.model / "generation_config.json", **settings)
    loaded = load_checkpoint(ModelSource(source="model"), SEQ2SEQ, stand_in.root, CPU)
    inputs = loaded.preprocessor.example(Length(value=0.3, unit="seconds"), 1)
    said = SEQ2SEQ.torch_predict(loaded.model)(inputs)[0].tolist()
    model, config = loaded.model, loaded.model.generation_config
    prompt = [model.config.decoder_start_token_id, config.no_timestamps_token_id]
    wanted: list[int] = []
    while len(wanted) < len(said):
        with torch.no_grad():
            fed = torch.tensor([prompt + wanted])
            decoded = model(**inputs, decoder_input_ids=fed).logits[0, -1]
        decoded[config.suppress_tokens] = -torch.inf
        wanted.append(int(decoded.argmax()))
    assert len(said) > 5
    assert said == wanted


@pytest.mark.parametrize(
    ("file", "key"),
    [("preprocessor_config.json", "feature_extractor_type"),
     ("tokenizer_config.json", "tokenizer_class")],
)  # fmt: skip
@pytest.mark.parametrize(
    "named", ["pipeline", "AutoModelForCTC", "GenerationConfig", "AutoConfig", "set_seed",
              "Wav2Vec2Processor", "RagTokenizer", "CLIPImageProcessor", "../x", 3, ["a"]],
)  # fmt: skip
def test_settings_may_name_any_class_but_get_no_other_kind(
    file: str, key: str, named: Any, stand_in_of: Callable[[str], StandIn]
) -> None:
    stand_in = stand_in_of("speech_recognition")
    change(stand_in.model / file, **{key: named})
    (fault,) = refused(stand_in)
    assert fault.startswith("model: cannot read its ")
    assert len(fault) < 400


# Other files ---------------------------------------------------------------------------------


def test_the_view_holds_known_files_only(
    stand_in_of: Callable[[str], StandIn], tmp_path: Path
) -> None:
    stand_in = stand_in_of("encoder_decoder")
    for name in (
        "adapter_config.json", "adapter_model.safetensors", "modeling_x.py", "chat_template.jinja",
        "additional_chat_templates/x.jinja", "custom_generate/generate.py", "optimizer.pt",
        "pytorch_model.bin", "model.gguf", "tokenizer_config.4.0.0.json", ".hidden/config.json",
    ):  # fmt: skip
        (stand_in.model / name).parent.mkdir(exist_ok=True)
        (stand_in.model / name).write_text("{}")
    loaded = load_checkpoint(ModelSource(source="model"), SEQ2SEQ, stand_in.root, CPU)
    assert loaded.staged is not None
    assert {path.name for path in loaded.staged.directory.rglob("*")} == {
        "config.json", "generation_config.json", "preprocessor_config.json", "merges.txt",
        "model.safetensors", "special_tokens_map.json", "tokenizer_config.json", "vocab.json",
    }  # fmt: skip
    directory = loaded.staged.directory
    del loaded
    assert not directory.exists()


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer_config.json", "vocab_file", "../elsewhere/vocab.json"),
        ("tokenizer_config.json", "vocab_file", "{elsewhere}/vocab.json"),
        ("tokenizer_config.json", "merges_file", "{elsewhere}/vocab.json"),
        ("tokenizer_config.json", "fast_tokenizer_files", ["../elsewhere/vocab.json"]),
        ("tokenizer_config.json", "init_inputs", ["{elsewhere}/vocab.json"]),
        ("config.json", "configuration_files", ["config.4.0.0.json"]),
        ("config.json", "transformers_weights", "../elsewhere/model.safetensors"),
        ("config.json", "name_or_path", "{elsewhere}"),
        ("config.json", "_name_or_path", "nobody/nothing"),
        ("preprocessor_config.json", "name_or_path", "{elsewhere}"),
    ],
)
def test_file_names_within_settings_are_not_followed(
    file: str, key: str, value: Any, stand_in_of: Callable[[str], StandIn], tmp_path: Path
) -> None:
    """The vocabulary elsewhere has other numbers: who reads it decodes other text."""
    stand_in = stand_in_of("speech_recognition")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(stand_in.model / "vocab.json", elsewhere)
    tokens = json.loads((elsewhere / "vocab.json").read_text())
    turned = dict(zip(tokens, reversed(tokens.values()), strict=True))
    (elsewhere / "vocab.json").write_text(json.dumps(turned))
    (stand_in.model / "config.4.0.0.json").write_text("not to be read")
    plain = load_checkpoint(ModelSource(source="model"), CTC, stand_in.root, CPU)
    filled = json.loads(json.dumps(value).replace("{elsewhere}", str(elsewhere)))
    change(stand_in.model / file, **{key: filled})
    loaded = load_checkpoint(ModelSource(source="model"), CTC, stand_in.root, CPU)
    assert loaded.vocabulary.tokenizer.get_vocab() == plain.vocabulary.tokenizer.get_vocab()
    assert loaded.model.config.name_or_path == ""


def test_settings_lose_requests_and_keep_the_rest() -> None:
    """Also one level down, where settings of a part lie; labels may have any name."""
    assert taken_of(
        {
            "auto_map": {"a": "b"},
            "hidden_size": 8,
            "id2label": {"0": "auto_map"},
            "label2id": {"auto_map": 0, "vocab_file": 1},
            "feature_extractor": {"auto_map": 1, "sampling_rate": 16000},
            "conv_dim": [1, 2],
        },
        "config.json",
    ) == {
        "hidden_size": 8,
        "id2label": {"0": "auto_map"},
        "label2id": {"auto_map": 0, "vocab_file": 1},
        "feature_extractor": {"sampling_rate": 16000},
        "conv_dim": [1, 2],
    }
    tokens = {"vocab_file": "x", "sp_model_kwargs": {"model_file": "y", "alpha": 0.1}}
    assert taken_of(tokens, "tokenizer_config.json") == {"sp_model_kwargs": {"alpha": 0.1}}


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("far", [True, False])
def test_links_are_followed_within_the_directory_only(
    name: str, far: bool, stand_in: StandIn, tmp_path: Path
) -> None:
    kept = tmp_path / "elsewhere" if far else stand_in.model / "kept"
    kept.mkdir()
    (stand_in.model / name).rename(kept / name)
    (stand_in.model / name).symlink_to(kept / name)
    if far:
        assert refused(stand_in) == [
            f"model: {name}: a link that leads out of its directory: put the file there"
        ]
    else:
        assert invoke("check", stand_in.recipe).exit_code == 0


def test_the_hubs_cache_is_made_of_links(stand_in: StandIn, tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots/0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(stand_in.model.iterdir())):
        shutil.move(path, cache / f"blobs/{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    result = invoke("check", stand_in.recipe, "--set", f"model.source={snapshot}")
    assert result.exit_code == 0, result.output
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../../secret.json")
    (tmp_path / "secret.json").write_text('{"password": "1234"}')
    result = invoke("check", stand_in.recipe, "--set", f"model.source={snapshot}")
    assert result.exit_code == 2
    assert "a link that leads out of its directory" in result.stderr
    assert "1234" not in result.stderr


# The same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_the_view_gives_what_the_directory_gives(tiny: TinyModel, tmp_path: Path) -> None:
    """Weights, attention and outputs are those of transformers alone, bit by bit."""
    from hibprune.models.architecture import attention_of

    tiny.build().save_pretrained(tmp_path)
    automatic = getattr(transformers, tiny.auto_class)
    wanted = automatic.from_pretrained(tmp_path).eval()
    staged = StagedCheckpoint(tmp_path, "tiny", SMALL)
    staged.link("model.safetensors")

    class Task:
        model_class = tiny.auto_class

    config = transformers.AutoConfig.from_pretrained(staged.directory)
    attention = attention_of(config, Task())  # type: ignore[arg-type]
    assert attention == wanted.config._attn_implementation
    found = automatic.from_pretrained(staged.directory, attn_implementation=attention).eval()
    inputs = tiny.inputs()
    with torch.inference_mode():
        assert torch.equal(found(**inputs).logits, wanted(**inputs).logits)

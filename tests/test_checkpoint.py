"""Loading a checkpoint: what belongs to its identity, weights in several files, a trial of it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from commands import faults, invoke, refused, run
from safetensors.torch import load_file, save_file
from standin import LABELS, StandIn
from tiny_models import TINY_MODELS

import hibprune.models.architecture
from hibprune.deployment.export import export_onnx
from hibprune.errors import UserError, missing_package
from hibprune.execution.runtime import onnx_predict, onnx_session, torch_predict
from hibprune.models.architecture import graph_fault
from hibprune.models.checkpoint import load_checkpoint
from hibprune.models.source import ModelSource
from hibprune.tasks.classification import KeywordSpotting
from hibprune.tasks.ctc import SpeechRecognitionCTC
from hibprune.tasks.seq2seq import SpeechRecognitionSeq2Seq
from hibprune.tasks.text import TextClassification

CPU = torch.device("cpu")
TASKS = {
    "keyword_spotting": KeywordSpotting(kind="keyword-spotting"),
    "speech_recognition": SpeechRecognitionCTC(kind="asr-ctc"),
    "encoder_decoder": SpeechRecognitionSeq2Seq(kind="asr-seq2seq", max_new_tokens=12),
    "encoder_decoder_on_waveforms": SpeechRecognitionSeq2Seq(kind="asr-seq2seq", max_new_tokens=12),
    "text_classification": TextClassification(kind="text-classification"),
}
TINY = {tiny.name: tiny for tiny in TINY_MODELS}
Spoil = Callable[[StandIn], object]


def identity(stand_in: StandIn, name: str) -> str:
    source = ModelSource(source="model")
    return load_checkpoint(source, TASKS[name], stand_in.root, CPU).identity


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


def setting(file: str, **values: Any) -> Spoil:
    return lambda stand_in: change(stand_in.model / file, **values)


def weights(spoil: Callable[[dict[str, torch.Tensor]], object], **metadata: str) -> Spoil:
    """Change the tensors of a checkpoint."""

    def spoil_file(stand_in: StandIn) -> None:
        path = stand_in.model / "model.safetensors"
        tensors = load_file(path)
        spoil(tensors)
        save_file(tensors, path, metadata={"format": "pt", **metadata})

    return spoil_file


# Identity ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "values"),
    [
        ("encoder_decoder", "generation_config.json", {"suppress_tokens": [3, 4]}),
        ("encoder_decoder", "generation_config.json", {"no_repeat_ngram_size": 2}),
        ("encoder_decoder", "normalizer.json", {"colour": "color"}),
        ("encoder_decoder", "added_tokens.json", {"<|new|>": 58}),
        ("encoder_decoder", "special_tokens_map.json", {"unk_token": "a"}),
        ("encoder_decoder", "preprocessor_config.json", {"padding_value": 0.5}),
        ("encoder_decoder", "config.json", {"scale_embedding": True}),
        ("encoder_decoder_on_waveforms", "generation_config.json", {"no_repeat_ngram_size": 3}),
        ("encoder_decoder_on_waveforms", "tokenizer_config.json", {"unk_token": "</s>"}),
        ("speech_recognition", "tokenizer_config.json", {"word_delimiter_token": "A"}),
        ("text_classification", "tokenizer_config.json", {"model_max_length": 20}),
        ("keyword_spotting", "preprocessor_config.json", {"do_normalize": False}),
    ],
)
def test_what_decides_what_a_model_says_belongs_to_its_identity(
    name: str, file: str, values: dict[str, Any], stand_in_of: Callable[[str], StandIn]
) -> None:
    """Or steps of a run before the change would be taken for those after it."""
    stand_in = stand_in_of(name)
    before = identity(stand_in, name)
    assert identity(stand_in, name) == before
    change(stand_in.model / file, **values)
    assert identity(stand_in, name) != before


@pytest.mark.parametrize("file", ["merges.txt", "vocab.json"])
def test_so_do_vocabularies(file: str, stand_in_of: Callable[[str], StandIn]) -> None:
    stand_in = stand_in_of("encoder_decoder")
    before = identity(stand_in, "encoder_decoder")
    path = stand_in.model / file
    text = path.read_text()
    path.write_text(text.replace("0.2", "0.3") if file == "merges.txt" else text.replace("a", "à"))
    assert identity(stand_in, "encoder_decoder") != before


def test_so_does_every_weight(stand_in: StandIn) -> None:
    before = identity(stand_in, "keyword_spotting")
    weights(lambda tensors: tensors["classifier.bias"][0].add_(1e-3))(stand_in)
    assert identity(stand_in, "keyword_spotting") != before


@pytest.mark.parametrize(
    "file", ["README.md", "tokenizer.json", "generation_config.json", "training_args.bin", "x.py"]
)
def test_what_is_not_loaded_does_not(file: str, stand_in: StandIn) -> None:
    """Not even where it is damaged."""
    before = identity(stand_in, "keyword_spotting")
    (stand_in.model / file).write_text("{")
    assert identity(stand_in, "keyword_spotting") == before


def test_nor_does_where_it_lies(stand_in: StandIn) -> None:
    before = identity(stand_in, "keyword_spotting")
    kept = stand_in.root / "kept"
    stand_in.model.rename(kept)
    shutil.copytree(kept, stand_in.model)
    assert identity(stand_in, "keyword_spotting") == before


# Weights in other forms ----------------------------------------------------------------------


def in_shards(stand_in: StandIn, **options: Any) -> Path:
    """The same weights in several files; returns the table of which tensor lies where."""
    model = transformers.AutoModelForAudioClassification.from_pretrained(stand_in.model)
    (stand_in.model / "model.safetensors").unlink()
    model.save_pretrained(stand_in.model, max_shard_size="20KB", **options)
    (index,) = stand_in.model.glob("*.index.json")
    assert len(set(json.loads(index.read_text())["weight_map"].values())) > 2
    return index


@pytest.mark.parametrize("pickled", [False, True])
def test_weights_may_lie_in_several_files(stand_in: StandIn, pickled: bool) -> None:
    wanted = load_file(stand_in.model / "model.safetensors")
    in_shards(stand_in, safe_serialization=not pickled)
    source = ModelSource(source="model", pickle=pickled)
    assert source.problems(stand_in.root) == []
    found = load_checkpoint(source, TASKS["keyword_spotting"], stand_in.root, CPU).model
    state = found.state_dict()
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    if pickled:
        assert refused(stand_in) == [
            "recipe.yaml: model.source: model: no model.safetensors in it "
            "(model.pickle: true also accepts pytorch_model.bin)"
        ]


@pytest.mark.parametrize(
    ("change_table", "fault"),
    [
        (lambda table: next(iter(set(table.values()))),
         "names {shard}, which is not there: copy all files of the checkpoint"),
        (lambda table: table.update(x="../../secret.safetensors"),
         "names '../../secret.safetensors', which is no .safetensors file beside it: "
         "take another copy of the checkpoint"),
        (lambda table: table.update(x="/etc/secret.safetensors"),
         "names '/etc/secret.safetensors', which is no .safetensors file beside it: "
         "take another copy of the checkpoint"),
        (lambda table: table.update(x="pytorch_model.bin"),
         "names 'pytorch_model.bin', which is no .safetensors file beside it: "
         "take another copy of the checkpoint"),
        (lambda table: table.update(x=["a"]),
         "names '['a']', which is no .safetensors file beside it: "
         "take another copy of the checkpoint"),
        (lambda table: table.clear(), "no 'weight_map' in it: take another copy of it"),
    ],
)  # fmt: skip
def test_a_table_of_weights_leads_to_files_beside_it(
    stand_in: StandIn, change_table: Callable[[dict[str, Any]], str | None], fault: str
) -> None:
    index = in_shards(stand_in)
    content = json.loads(index.read_text())
    lost = change_table(content["weight_map"])
    if lost is not None:
        (stand_in.model / lost).unlink()
    index.write_text(json.dumps(content))
    (found,) = refused(stand_in)
    separator = ":" if "weight_map" in fault else ""
    shown = f"model: model.safetensors.index.json{separator} {fault}"
    assert found == shown.replace("{shard}", str(lost))


# Contradictions ------------------------------------------------------------------------------


def nan_in_an_unused_row(tensors: dict[str, torch.Tensor]) -> None:
    tensors["wav2vec2.masked_spec_embed"][0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (setting("config.json", num_attention_heads=0),
         "cannot read its weights (model.safetensors): its config.json describes no model that "
         "can be built (ZeroDivisionError: integer division or modulo by zero)"),
        (setting("config.json", hidden_act="nonsense"),
         "its config.json describes no model that can be built (KeyError: 'nonsense')"),
        (setting("config.json", num_hidden_layers=10**9), "config.json: num_hidden_layers: 10000"),
        (setting("config.json", num_hidden_layers=1),
         "its weights have more layers than its config.json says (wav2vec2.encoder.layers.1."),
        (setting("config.json", hidden_size=10**12), "config.json: hidden_size: 1000000000000 is"),
        (setting("config.json", vocab_size="x", id2label={str(n): "x" for n in range(3)}),
         "its weights do not have the shapes its config.json says"),
        (setting("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
         "its weights are quantized (config.json: quantization_config): take the checkpoint that "
         "they were made of"),
        (setting("config.json", is_encoder_decoder=True),
         "is_encoder_decoder: True is not how a model of type 'wav2vec2' is built"),
        (setting("config.json", layer_norm_eps=float("nan")),
         "fails on a trial clip of 1 s: NaN or infinite values come out"),
        (setting("config.json", conv_stride=[0, 5, 4]), "fails on a trial clip of 1 s: "),
        (setting("config.json", pruned_neurons={"0": [[10**13, "f"]]}), "pruned_neurons"),
        (setting("config.json", pruned_neurons={"0": [[37, "f" * 100_000]]}), "pruned_neurons"),
        (setting("config.json", pruned_channels={"0": [10**13, "f"]}),
         "pruned_channels: layer 0 had more channels than any model has"),
        (setting("config.json", pruned_channels={"0": [17, "3"]}),
         "pruned_channels speaks of 17 channels of which 2 are gone, where the configuration "),
        (setting("config.json", pruned_channels={"0": [16, "10000"]}),
         "pruned_channels speaks of channels that are gone and never were"),
        (setting("config.json", pruned_channels={"0": 3}), "cannot read its config.json"),
        (setting("config.json", conv_dim=[10**9, 16, 16]),
         "its weights do not have the shapes its config.json says"),
        (setting("config.json", pruned_channels={"9": [16, "1"]}),
         "pruned_channels speaks of layer 9, and there are layers 0 to "),
        *((setting("config.json", pruned_channels={"0": part}),
           "pruned_channels: layer 0 is no list of numbers of channels, each with a mask")
          for part in ("x", [16], [[16, "1"]], [True, "1"], [16, "zz"])),
        (setting("config.json", pruned_neurons="x"), "pruned_neurons: no mapping: mend it"),
        (setting("config.json", pruned_decoder_neurons="x"),
         "pruned_decoder_neurons: no mapping: mend it"),
        (setting("config.json", pruned_decoder_neurons={"0": [[10**13, "f"]]}),
         "pruned_decoder_neurons: layer 0 had more neurons than any model has"),
        (setting("config.json", pruned_decoder_heads="x"), "pruned_decoder_heads: no mapping"),
        (setting("config.json", pruned_cross_heads={"0": [10**13, "f"]}),
         "pruned_cross_heads: layer 0 had more heads than any model has"),
        (setting("config.json", pruned_cross_heads={"0": [[4, "1"]]}),
         "pruned_cross_heads: layer 0 is no list of numbers of heads, each with a mask"),
        (setting("config.json", pruned_neurons=[[37, "1"]]), "pruned_neurons: no mapping"),
        (setting("config.json", pruned_neurons={"x\nerror: y": []}),
         "pruned_neurons: 'x error: y' is no layer's number"),
        (setting("config.json", pruned_neurons={"-1": [[37, "1"]]}), "'-1' is no layer's number"),
        (setting("config.json", pruned_neurons={"99": [[37, "1"]]}),
         "pruned_neurons speaks of layer 99, and there are layers 0 to 1"),
        (setting("config.json", pruned_neurons={"0": []}),
         "pruned_neurons speaks of 0 feed-forwards in a layer that has 1"),
        *((setting("config.json", pruned_neurons={"0": parts}),
           "pruned_neurons: layer 0 is no list of numbers of neurons, each with a mask")
          for parts in (3, "x", [[37]], [[37, 3]], [["37", "1"]], [[37.5, "1"]], [[True, "1"]],
                        [[37, None]], [[37, "-1"]], [[37, "zz"]], [[37, "0x1"]], [[37, "1_0"]],
                        [[37, " 1"]], [[37, ""]])),
        (setting("config.json", pruned_neurons={"0": [[-37, "1"]]}), "than any model has"),
        *((setting("config.json", pruned_heads=heads), f"config.json: pruned_heads: {fault}")
          for heads, fault in (
              ("x", "no mapping"), ([1], "no mapping"), ({"x": [0]}, "'x' is no layer's number"),
              ({"0": "x"}, "layer 0 is no list of heads"), ({"0": [0.5]}, "layer 0 is no list"),
              ({"0": [True]}, "layer 0 is no list"), ({"0": [-1]}, "layer 0 is no list"))),
        (weights(nan_in_an_unused_row),
         "NaN or infinite values among its weights (wav2vec2.masked_spec_embed)"),
        (weights(lambda tensors: tensors["classifier.bias"].fill_(-torch.inf)),
         "NaN or infinite values among its weights (classifier.bias)"),
        (weights(lambda tensors: None, format="flax"), "was written by flax, not PyTorch"),
        (weights(lambda tensors: None, format="tf"), "was written by tf, not PyTorch"),
        (setting("preprocessor_config.json", sampling_rate=0), "should be a whole number of Hz"),
        (setting("preprocessor_config.json", sampling_rate=-16000), "not -16000"),
        (setting("preprocessor_config.json", sampling_rate="x"), "should be a whole number of Hz"),
        (setting("preprocessor_config.json", sampling_rate=48_000_000), "not 48000000"),
        (setting("preprocessor_config.json", sampling_rate=float("nan")), "not nan"),
        (setting("preprocessor_config.json", sampling_rate=True), "not True"),
        (setting("preprocessor_config.json", do_normalize="no"), "should be true or false, not no"),
        (setting("preprocessor_config.json", feature_extractor_type="WhisperFeatureExtractor"),
         "its feature extractor (WhisperFeatureExtractor) fails"),
        (setting("preprocessor_config.json", feature_extractor_type="WhisperFeatureExtractor",
                 feature_size=16), "fails on a trial clip of 1 s"),
        (setting("preprocessor_config.json", feature_extractor_type="ASTFeatureExtractor"),
         "fails on a trial clip of 1 s"),
    ],
)  # fmt: skip
def test_checkpoints_of_sound_that_cannot_be_right(
    stand_in: StandIn, spoil: Spoil, fault: str
) -> None:
    """One plain line from `run`, before an output directory is there, and from `check`."""
    spoil(stand_in)
    (found,) = refused(stand_in)
    assert fault in found
    assert len(found) < 500
    (checked,) = faults(invoke("check", stand_in.recipe))
    assert checked.replace(f"{stand_in.root}/", "") == found


@pytest.mark.parametrize(
    ("name", "spoil", "fault"),
    [
        ("encoder_decoder", setting("preprocessor_config.json", chunk_length="x"),
         "cannot read its feature extractor"),
        ("encoder_decoder", setting("preprocessor_config.json", chunk_length=2),
         "fails on a trial clip of 1 s: Whisper expects the mel input features to be of length"),
        ("encoder_decoder", setting("preprocessor_config.json", chunk_length=10**9),
         "chunk_length: 1000000000 is out of all proportion"),
        ("encoder_decoder", setting("preprocessor_config.json", chunk_length=10**5),
         "chunk_length: 100000 s are more than a model takes"),
        ("encoder_decoder", setting("preprocessor_config.json", hop_length=0),
         "ZeroDivisionError: integer division or modulo by zero"),
        ("encoder_decoder", setting("preprocessor_config.json", dither=0.01),
         "makes something else of one clip at every time: set dither to 0"),
        ("encoder_decoder", setting("generation_config.json", bad_words_ids=[[10**6]]),
         "fails on a trial clip of 1 s: The model vocabulary size is 59"),
        ("encoder_decoder", lambda s: (s.model / "vocab.json").write_text("{"),
         "cannot read its tokenizer"),
        ("encoder_decoder_on_waveforms", lambda s: (s.model / "tokenizer.json").write_text("{"),
         "cannot read its tokenizer"),
        ("encoder_decoder_on_waveforms",
         lambda s: (s.model / "tokenizer.json").write_text('{"version": "1.0", "model": 3}'),
         "cannot read its tokenizer"),
        ("speech_recognition",
         setting("tokenizer_config.json", tokenizer_class="Wav2Vec2PhonemeCTCTokenizer"),
         "it needs the package 'phonemizer', which is not installed: pip install phonemizer"),
        ("text_classification", setting("tokenizer_config.json", model_max_length="x"),
         "its longest text cannot be told"),
        ("text_classification", setting("tokenizer_config.json", model_max_length=float("nan")),
         "its longest text cannot be told"),
        ("text_classification", setting("tokenizer_config.json", model_max_length=2),
         "takes texts of at most 2 tokens"),
        ("text_classification", setting("tokenizer_config.json", model_max_length=-1),
         "takes texts of at most -1 tokens"),
    ],
)  # fmt: skip
def test_other_checkpoints_that_cannot_be_right(
    name: str, spoil: Spoil, fault: str, stand_in_of: Callable[[str], StandIn]
) -> None:
    stand_in = stand_in_of(name)
    spoil(stand_in)
    (found,) = refused(stand_in)
    assert fault in found
    assert len(found) < 500


@pytest.mark.parametrize("found", [torch.tensor([torch.nan]), ValueError("no such class")])
def test_the_loss_is_computed_once_before_the_work(
    found: Any, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(*arguments: Any) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(KeywordSpotting, "loss", loss)
    (fault,) = refused(stand_in)
    told = "no such class" if isinstance(found, Exception) else "it is NaN or infinite"
    assert fault.startswith(f"model: its loss on a trial clip cannot be computed: {told}: take")


def test_a_tokenizer_with_more_tokens_than_the_model_knows(reviews: StandIn) -> None:
    """On a GPU a number beyond the table would end the process's use of it."""
    path = reviews.model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["zebra"] = 99
    path.write_text(json.dumps(content))
    known = len(content["model"]["vocab"]) - 1
    assert refused(reviews) == [
        "model: its tokenizer gives 'zebra' the number 99, but the model knows numbers below "
        f"{known}: take both from one checkpoint"
    ]


@pytest.mark.parametrize("depth", [40, 300, 900, 5000, 100_000])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_settings_that_nest_deeply(stand_in: StandIn, file: str, depth: int) -> None:
    """Some can be loaded, and not saved after the work."""
    path = stand_in.model / file
    path.write_text(path.read_text().rstrip()[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}")
    (fault,) = refused(stand_in)
    assert fault.startswith(f"model: cannot read its {file}: ")
    assert "nested too deeply" in fault


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"top_p": 0.5}, 0), ({"temperature": 0.3, "top_k": 3}, 0), ({"pad_token_id": -1}, 2),
     ({"max_new_tokens": 0}, 2)],
)  # fmt: skip
def test_settings_of_generation_that_can_be_loaded_and_not_saved(
    settings: dict[str, Any], code: int, stand_in_of: Callable[[str], StandIn]
) -> None:
    stand_in = stand_in_of("encoder_decoder")
    change(stand_in.model / "generation_config.json", **settings)
    result = invoke("check", stand_in.recipe)
    assert result.exit_code == code, result.output


def test_a_model_that_a_gigabyte_would_not_hold_is_not_built(stand_in: StandIn) -> None:
    """A configuration may promise what memory does not hold: files of weights show the size."""
    change(stand_in.model / "config.json", hidden_size=2**20, intermediate_size=2**20)
    assert refused(stand_in) == ["model: its weights do not have the shapes its config.json says"]


@pytest.mark.parametrize("name", ["~nobody-at-all/model", "x" * 5000, "a\0b"])
def test_names_that_no_directory_can_have(stand_in: StandIn, name: str) -> None:
    assert ModelSource(source=name).problems(stand_in.root) == [
        f"{name}: no such directory, and not a Hub id (owner/name)"
    ]


def test_no_room_for_a_view(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(stand_in.root / "gone"))
    assert refused(stand_in) == [
        "no temporary directory can be made: no such file or directory: set TMPDIR"
    ]


# Too large for a file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "graph", "weights_in_it"),
    [
        ("wav2vec2", "model", lambda model: model),
        ("whisper", "encoder", lambda model: model.get_encoder()),
        ("moonshine", "decoder", lambda model: model.get_decoder()),
    ],
)
def test_a_graph_is_as_large_as_its_weights(
    name: str,
    graph: str,
    weights_in_it: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = TINY[name].build()
    size = 4 * sum(weight.numel() for weight in weights_in_it(model).parameters())
    if graph == "decoder":
        size += 4 * model.get_output_embeddings().weight.numel()
    monkeypatch.setattr(hibprune.models.architecture, "LARGEST_GRAPH", size)
    assert f"the {graph} " not in (graph_fault(model) or "")
    monkeypatch.setattr(hibprune.models.architecture, "LARGEST_GRAPH", size - 1)
    found = graph_fault(model)
    assert found is not None
    assert "more than the 2 GB that one ONNX file holds" in found


def test_a_model_too_large_to_export_is_refused_before_the_work(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hibprune.models.architecture, "LARGEST_GRAPH", 1000)
    (fault,) = refused(stand_in)
    assert fault.startswith("model: the model has 0.0 GB of weights in float32, more than the 2 GB")
    (checked,) = faults(invoke("check", stand_in.recipe))
    assert checked == fault


# Packages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "named"),
    [("soundfile", "soundfile"), ("jiwer", "jiwer"), ("yaml", "PyYAML")],
)
def test_a_missing_package_is_named(
    package: str,
    named: str,
    stand_in_of: Callable[[str], StandIn],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in = stand_in_of("speech_recognition")
    names = [name for name in sys.modules if name.startswith("hibprune.")]
    for parent, _, child in (name.rpartition(".") for name in names):
        monkeypatch.delattr(sys.modules[parent], child, raising=False)
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    (fault,) = faults(run(stand_in))
    assert fault == f"the package '{named}' is not installed: pip install {named}"


def test_a_defect_of_ours_is_not_taken_for_a_missing_package() -> None:
    assert missing_package(ModuleNotFoundError(name="hibprune.nothing")) is None
    assert missing_package(ImportError("cannot import name 'x'", name="hibprune.cli")) is None
    assert missing_package(ValueError("3")) is None


def test_what_rust_raises_when_it_gives_up_is_a_plain_line() -> None:
    """Its type is not known by any module and no Exception."""
    from hibprune.models.parts import plain_faults

    panic = type("PanicException", (BaseException,), {})
    told = r"^model: PanicException: index out of bounds$"
    with pytest.raises(UserError, match=told), plain_faults("model"):
        raise panic("index out of bounds")
    for other in (KeyboardInterrupt, SystemExit):
        with pytest.raises(other), plain_faults("model"):
            raise other


# Families that are not served ----------------------------------------------------------------

SQUEEZED = {
    "squeeze_factor": 2,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (8, 4),
}
UNSERVED = {
    "sew": ("SEWConfig", SQUEEZED),
    "sew-d": ("SEWDConfig", {**SQUEEZED, "pos_att_type": ("p2c", "c2p"), "position_buckets": 16}),
    "wav2vec2-bert": ("Wav2Vec2BertConfig", {"feature_projection_input_dim": 16}),
}


@pytest.mark.parametrize("model_type", UNSERVED)
def test_a_family_that_is_not_served_is_refused_at_load(model_type: str, stand_in: StandIn) -> None:
    """Sound in itself: transformers loads it as a classifier of sound."""
    name, settings = UNSERVED[model_type]
    config = getattr(transformers, name)(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=37,
        num_labels=len(LABELS), **settings,
    )  # fmt: skip
    shutil.rmtree(stand_in.model)
    transformers.AutoModelForAudioClassification.from_config(config).save_pretrained(stand_in.model)
    extractor = transformers.Wav2Vec2FeatureExtractor()
    if model_type == "wav2vec2-bert":
        extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8)
    extractor.save_pretrained(stand_in.model)
    transformers.AutoModelForAudioClassification.from_pretrained(stand_in.model)
    served = ", ".join(sorted({one.config().model_type for one in TINY_MODELS}))
    line = f"model: no known attention heads in model type '{model_type}': use one of {served}"
    assert refused(stand_in) == [line]
    assert faults(invoke("check", stand_in.recipe)) == [line]


# Variants that run ---------------------------------------------------------------------------


def adapted(stand_in: StandIn) -> None:
    """An adapter behind the encoder halves the number of frames three times."""
    torch.manual_seed(0)
    config = TINY["wav2vec2"].config(add_adapter=True)
    transformers.AutoModelForCTC.from_config(config).save_pretrained(stand_in.model)


def attention_adapted(stand_in: StandIn) -> None:
    """As in models of many languages; no other language's adapter is asked for."""
    torch.manual_seed(0)
    config = TINY["wav2vec2-stable"].config(adapter_attn_dim=4)
    transformers.AutoModelForCTC.from_config(config).save_pretrained(stand_in.model)


@pytest.mark.parametrize(
    "variant", [adapted, pytest.param(attention_adapted, marks=pytest.mark.slow)]
)
def test_variants_of_recognition_run(variant: Spoil, stand_in_of: Callable[[str], StandIn]) -> None:
    stand_in = stand_in_of("speech_recognition")
    variant(stand_in)
    result = run(stand_in, "--quiet")
    assert result.exit_code == 0, result.output


def test_rotary_positions_are_of_each_pass_alone(stand_in: StandIn, tmp_path: Path) -> None:
    """Behind a pass of the very length that the exporter traces, and one without gradients."""
    config = TINY["conformer-rotary"].config(
        num_labels=len(LABELS), id2label=dict(enumerate(LABELS))
    )
    shutil.rmtree(stand_in.model)
    transformers.AutoModelForAudioClassification.from_config(config).save_pretrained(stand_in.model)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(stand_in.model)
    source = ModelSource(source="model")
    model = load_checkpoint(source, TASKS["keyword_spotting"], stand_in.root, CPU).model
    torch.manual_seed(0)
    clips = [torch.randn(1, samples) for samples in (16_000, 9_000, 24_000)]
    wanted = [torch_predict(model)({"input_values": clip}) for clip in clips]
    torch_predict(model)({"input_values": clips[0]})
    export_onnx(model, tmp_path, "audio-classification", 18, ("model.onnx",))
    predict = onnx_predict(onnx_session(tmp_path / "model.onnx", "cpu", threads=1))
    for clip, logits in zip(clips, wanted, strict=True):
        assert np.abs(predict({"input_values": clip}) - logits).max() < 1e-5
    model(clips[0]).logits.sum().backward()
    assert model.classifier.weight.grad is not None


def test_a_form_of_output_that_a_configuration_asks_for_is_ours_to_say(stand_in: StandIn) -> None:
    change(
        stand_in.model / "config.json", return_dict=False, output_hidden_states=True,
        output_attentions=True, torchscript=True, chunk_size_feed_forward=7,
    )  # fmt: skip
    result = invoke("check", stand_in.recipe)
    assert result.exit_code == 0, result.output


def test_a_refusal_names_the_directory_given_and_no_other(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is loaded from a directory of ours, which tells nobody anything."""

    def failing(*arguments: Any, **options: Any) -> Any:
        raise OSError(f"cannot open {arguments[0]}/config.json")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", failing)
    assert refused(stand_in) == [
        "model: cannot read its config.json: cannot open model/config.json"
    ]

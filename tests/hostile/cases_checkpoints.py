"""Checkpoints that are damaged, contradict themselves, or bring code along."""

from __future__ import annotations

import json

from battery import Case
from spoiling import (
    both,
    code,
    content,
    cut,
    no_file,
    removed,
    setting,
    weights,
    without,
)

CONFIG, EXTRACTOR = "model/config.json", "model/preprocessor_config.json"
VOCABULARY = "model/vocab.json"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")

SETTINGS = {
    "num_attention_heads": (0, -1, 5, "x", None, 10**9, 2.5),
    "num_hidden_layers": (0, -1, 1, 3, "x", 10**6),
    "hidden_size": (0, -1, "x", 31, 10**9),
    "intermediate_size": (0, "x", 38),
    "conv_dim": ([], [16], "x", [0, 0, 0], [16, 16, -1]),
    "conv_kernel": ([], [10, 3], [0, 0, 0], "x"),
    "conv_stride": ([0, 5, 4], [8, 5], "x"),
    "hidden_act": ("nope", 3, None),
    "feat_extract_norm": ("nope", 3),
    "model_type": ("nope", None, 3, "../x", ""),
    "id2label": (
        {},
        {"x": "a"},
        [],
        "x",
        # For as many classes as there are, so that it is not their number that is wrong.
        {"0": "w0", "1": "w1", "2": "w2", "3": "w3", "5": "w4"},
        {"1": "w0", "2": "w1", "3": "w2", "4": "w3", "5": "w4"},
        {"0": "w0", "1": "w0", "2": "w2", "3": "w3", "4": "w4"},
        {"0": None, "1": "w1", "2": "w2", "3": "w3", "4": "w4"},
        {"0": 4, "1": 3, "2": 2, "3": 1, "4": 0},
    ),
    "label2id": ({"w0": 99}, []),
    "pruned_heads": ({"0": [99]}, {"99": [0]}, {"x": [0]}, [1], "x", {"0": "x"}, {"0": [0.5]}),
    "num_feat_extract_layers": (0, 99, "x"),
    "layer_norm_eps": ("x", float("nan")),
    "quantization_config": (
        {"quant_method": "nope"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        3,
        "x",
    ),
    "torch_dtype": ("nope", 3),
    "problem_type": ("regression", "multi_label_classification", 3),
    "architectures": ("x", 3),
    "attn_implementation": ("nope", "kernels-community/nope", "flash_attention_2", 3),
    "_attn_implementation": ("nope", "flash_attention_2"),
    "auto_map": ({"AutoConfig": "code.Config", "AutoModelForAudioClassification": "code.Model"}, 3),
}
MAY_BE_TAKEN = {
    "torch_dtype",
    "architectures",
    "attn_implementation",
    "_attn_implementation",
    "label2id",
    "auto_map",
    "layer_norm_eps",
    "id2label",
    "num_feat_extract_layers",
    "conv_dim",
    "pruned_heads",
    "quantization_config",
    "problem_type",
}

EXTRACTOR_SETTINGS = {
    "sampling_rate": (0, -16000, "x", None, 48_000_000, 1.5),
    "feature_size": (0, 7, "x"),
    "do_normalize": ("x",),
    "feature_extractor_type": ("nope", "WhisperFeatureExtractor", 3, "ASTFeatureExtractor"),
    "padding_value": ("x",),
    "auto_map": ({"AutoFeatureExtractor": "code.Extractor"},),
    "processor_class": ("nope",),
}

WHISPER_SETTINGS = {
    "hop_length": (0, -1, "x", None),
    "chunk_length": (0, "x", -1, None),
    "n_fft": (0, "x"),
    "feature_size": (0, "x", 99),
    "sampling_rate": (0, "x", 48_000_000),
}
GENERATION = {
    "eos_token_id": ("x", 10**6, None),
    "decoder_start_token_id": ("x", 10**6),
    "max_length": (0, "x", -1),
    "suppress_tokens": ([10**6], "x"),
    "forced_decoder_ids": ([[1, 10**6]], "x"),
    "lang_to_id": ("x",),
    "num_beams": (0, "x"),
    "bad_words_ids": ([[10**6]],),
}
CTC = {
    "pad_token_id": (None, 10**6, -1, "x"),
    "vocab_size": (3, 99, 0, "x"),
}


def _settings(file, table, stand_in, lenient=()):
    return [
        Case(
            f"{stand_in}: {file.rpartition('/')[2]}: {key} = {json.dumps(value)[:40]}",
            setting(file, **{key: value}),
            stand_in,
            must_refuse=key not in lenient,
        )
        for key, values in table.items()
        for value in values
    ]


def _nan(tensors):
    next(t for t in tensors.values() if t.dim() == 2).fill_(float("nan"))


def _infinite(tensors):
    next(t for t in tensors.values() if t.dim() == 2).fill_(float("inf"))


def _renamed(tensors):
    name = next(iter(tensors))
    tensors["x." + name] = tensors.pop(name)


CASES: list[Case] = [
    *_settings(CONFIG, SETTINGS, "keyword_spotting", MAY_BE_TAKEN),
    *_settings(
        EXTRACTOR,
        EXTRACTOR_SETTINGS,
        "keyword_spotting",
        (
            "do_normalize",
            "auto_map",
            "processor_class",
            "padding_value",
            "feature_size",
            "feature_extractor_type",
            "sampling_rate",
        ),
    ),
    *_settings(
        EXTRACTOR, WHISPER_SETTINGS, "encoder_decoder", ("sampling_rate", "feature_size", "n_fft")
    ),
    *_settings("model/generation_config.json", GENERATION, "encoder_decoder", tuple(GENERATION)),
    *_settings(CONFIG, CTC, "speech_recognition"),
    *[Case(f"checkpoint: no {file}", removed(f"model/{file}")) for file in FILES],
    *[Case(f"checkpoint: half of {file}", cut(f"model/{file}", 0.5)) for file in FILES],
    *[Case(f"checkpoint: {file} is empty", content(f"model/{file}", "")) for file in FILES],
    *[
        Case(f"checkpoint: {file} is noise", content(f"model/{file}", bytes(range(256)) * 20))
        for file in FILES
    ],
    *[
        Case(f"checkpoint: {file} is a {kind}", no_file(f"model/{file}", kind))
        for file in FILES
        for kind in ("pipe", "zeros", "directory", "loop", "nowhere")
    ],
    Case("checkpoint: config.json is a list", content(CONFIG, "[1, 2]")),
    Case("checkpoint: config.json nests deeply", content(CONFIG, '{"a": ' + "[" * 100_000)),
    Case(
        "checkpoint: config.json of 200 megabytes",
        content(CONFIG, '{"a": "' + "x" * (2 * 10**8) + '"}'),
    ),
    Case("checkpoint: no model_type", without(CONFIG, "model_type")),
    Case("checkpoint: NaN among the weights", weights(_nan)),
    Case("checkpoint: infinite weights", weights(_infinite)),
    Case("checkpoint: a weight renamed", weights(_renamed)),
    Case(
        "checkpoint: weights claim a huge header",
        content("model/model.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    ),
    Case(
        "checkpoint: an index that leads elsewhere",
        both(
            removed("model/model.safetensors"),
            content(
                "model/model.safetensors.index.json",
                json.dumps({"weight_map": {"a": "../../../etc/passwd"}}),
            ),
        ),
    ),
    Case(
        "checkpoint: an index of absent shards",
        both(
            removed("model/model.safetensors"),
            content(
                "model/model.safetensors.index.json",
                json.dumps(
                    {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
                ),
            ),
        ),
    ),
    Case(
        "checkpoint: pickled weights alone",
        both(removed("model/model.safetensors"), content("model/pytorch_model.bin", b"\x80\x04.")),
    ),
    Case(
        "checkpoint: flax weights alone",
        both(removed("model/model.safetensors"), content("model/flax_model.msgpack", b"\x80")),
    ),
    Case(
        "checkpoint: an adapter beside it",
        content(
            "model/adapter_config.json",
            json.dumps({"base_model_name_or_path": "nobody/nothing", "peft_type": "LORA"}),
        ),
        must_refuse=False,
    ),
    Case(
        "checkpoint: code for the configuration",
        both(code("model/code.py"), setting(CONFIG, auto_map={"AutoConfig": "code.Config"})),
        must_refuse=False,
    ),
    *[
        Case(
            f"{stand_in}: custom_generate",
            code("model/custom_generate/generate.py"),
            stand_in,
            must_refuse=False,
        )
        for stand_in in ("encoder_decoder", "encoder_decoder_on_waveforms", "keyword_spotting")
    ],
    *[
        Case(
            f"{stand_in}: check of custom_generate",
            code("model/custom_generate/generate.py"),
            stand_in,
            ("check", "{root}/recipe.yaml"),
            must_refuse=False,
        )
        for stand_in in ("encoder_decoder", "encoder_decoder_on_waveforms")
    ],
    *[
        Case(f"speech_recognition: {file} {what}", spoil, "speech_recognition")
        for file in ("vocab.json", "tokenizer_config.json")
        for what, spoil in (
            ("is a list", content(f"model/{file}", "[]")),
            ("is noise", content(f"model/{file}", b"\xff\x00" * 50)),
            ("is a pipe", no_file(f"model/{file}", "pipe")),
        )
    ],
    Case(
        "speech_recognition: ids beyond the logits",
        content(
            VOCABULARY,
            json.dumps(
                {
                    "<pad>": 0,
                    "<s>": 1,
                    "</s>": 2,
                    "<unk>": 3,
                    "|": 4,
                    **{chr(65 + i): 500 + i for i in range(26)},
                    "'": 999,
                }
            ),
        ),
        "speech_recognition",
    ),
    Case(
        "speech_recognition: an id twice",
        content(
            VOCABULARY,
            json.dumps(
                {
                    "<pad>": 0,
                    "<s>": 1,
                    "</s>": 2,
                    "<unk>": 3,
                    "|": 4,
                    **{chr(65 + i): 5 for i in range(26)},
                    "'": 6,
                }
            ),
        ),
        "speech_recognition",
        must_refuse=False,
    ),
    Case(
        "speech_recognition: the blank is another",
        setting("model/tokenizer_config.json", pad_token="A"),
        "speech_recognition",
    ),
    *[
        Case(
            f"{stand_in}: no tokenizer",
            lambda s: (
                [p.unlink() for p in s.model.glob("*token*")]
                and [p.unlink() for p in s.model.glob("vocab*")]
                and [p.unlink() for p in s.model.glob("merges*")]
            ),
            stand_in,
        )
        for stand_in in ("encoder_decoder", "text_classification")
    ],
    *[
        Case(
            f"text_classification: {key} = {value!r}",
            setting(CONFIG, **{key: value}),
            "text_classification",
            must_refuse=key != "pad_token_id",
        )
        for key, value in (
            ("vocab_size", 3),
            ("n_heads", 0),
            ("dim", 31),
            ("max_position_embeddings", 0),
            ("n_layers", -1),
            ("pad_token_id", 10**6),
        )
    ],
    *[
        Case(
            f"intents: slots {slots}",
            lambda s, slots=slots: s.write(
                {**s.content(), "task": {"kind": "intent-classification", "slots": slots}}
            ),
            "intents",
        )
        for slots in (
            {},
            {"action": []},
            {"action": ["on"]},
            {"action": "on"},
            [],
            {"action": ["on", "on"]},
            {"action": ["on", "off"], "object": ["none"]},
        )
    ],
]

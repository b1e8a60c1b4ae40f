"""A view of a checkpoint that holds what is taken of it and nothing else: no code, no adapters.

transformers runs `custom_generate/generate.py` of a local directory whatever it is told of trust,
loads adapters with their base models, follows file names within settings, and fetches kernels that
a configuration asks for. So it is shown a directory of ours: copies of the known settings without
such requests, and links to the weights.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path

from hibprune.errors import UserError
from hibprune.execution.files import (
    digest,
    plain_disk_errors,
    read_bounded,
    read_fault,
    sha256_of,
)
from hibprune.models.source import CONFIGURATION_FILES, EXTRACTOR_FILES, read_json, real_file

MAX_SETTINGS_BYTES, MAX_VOCABULARY_BYTES = 2**24, 2**26
SETTINGS = (*CONFIGURATION_FILES, *EXTRACTOR_FILES, "tokenizer_config.json")
"""Files that hold options by name, of which some are not taken."""

CODE = {
    "auto_map", "custom_pipelines", "custom_generate", "trust_remote_code",
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "use_kernels", "kernel_config", "compile_config", "chat_template",
}  # fmt: skip
OTHER_FILES = {
    "_name_or_path", "name_or_path", "_commit_hash", "configuration_files", "transformers_weights",
    "fast_tokenizer_files", "init_inputs", "gguf_file", "model_proto", "mecab_option",
}  # fmt: skip
KIND_OF_OUTPUT = {
    "return_dict", "torchscript", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "return_dict_in_generate", "return_timestamps", "cache_implementation",
    "cache_config", "max_time", "chunk_size_feed_forward",
}  # fmt: skip
"""What a model gives out beside its answer and in what form, in what pieces it computes, how it
remembers and how long it may take: this is for its caller to say."""
WAY_TO_DECODE = {
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff",
    "eta_cutoff", "num_beams", "num_return_sequences", "early_stopping", "length_penalty",
    "prompt_lookup_num_tokens", "assistant_early_exit",
    # transformers has moved the code of these to the Hub.
    "penalty_alpha", "dola_layers", "constraints", "force_words_ids", "num_beam_groups",
    "diversity_penalty",
}  # fmt: skip
"""Tasks decode greedily; Whisper's `generate` prefers what the checkpoint says to being told so."""
NOT_TAKEN = CODE | OTHER_FILES | KIND_OF_OUTPUT | WAY_TO_DECODE
NAMES_OF_LABELS = ("id2label", "label2id")


class StagedCheckpoint:
    """A directory for transformers to load from, gone with this object at the latest.

    `small` are names of files to copy where they are there, possibly in a folder.

    `identity` is a digest of all that is in it, and so of all that decides what the model says.
    """

    def __init__(self, directory: Path, source: str, small: Iterable[str]) -> None:
        self.source = source
        try:
            self.directory = Path(tempfile.mkdtemp(prefix="hibprune-"))
        except OSError as error:
            fault = read_fault(error)
            raise UserError(f"no temporary directory can be made: {fault}: set TMPDIR") from error
        # Slow tokenizers copy their files from here when they are saved.
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self._origin = directory
        self._files: dict[str, Path] = {}
        self._renamed: dict[str, str] = {}
        for name in small:
            if os.path.lexists(directory / name):
                self._copy(name)

    @property
    def identity(self) -> str:
        """Of file names and contents; weights are read whole for it."""
        files = sorted(self._files.items())
        return digest(*(part for name, path in files for part in (name, sha256_of(path))))

    def link(self, name: str, shown_as: str | None = None) -> Path:
        """Show a large file, too, under its name or another; returns where it lies in truth.

        Raises:
            UserError: it is no regular file of the checkpoint's.
        """
        path = real_file(self._origin, name, self.source)
        shown_as = shown_as or name
        shown = self.directory / shown_as
        shown.parent.mkdir(exist_ok=True)
        try:
            shown.symlink_to(path)
        except OSError:  # Windows wants a privilege for links.
            with plain_disk_errors(self.directory):
                shutil.copyfile(path, shown)
        self._files[shown_as] = path
        if shown_as != name:
            self._renamed[str(shown)] = f"{self.source}/{name}"
        return path

    def named(self, text: str) -> str:
        """A message with the checkpoint's own name in the place of this directory's."""
        for shown, name in self._renamed.items():
            text = text.replace(shown, name)
        return text.replace(str(self.directory), self.source)

    def _copy(self, name: str) -> None:
        path = real_file(self._origin, name, self.source)
        if Path(name).name in SETTINGS:
            place = f"{self.source}: cannot read its {name}"
            settings = read_json(path, place, MAX_SETTINGS_BYTES)
            content = json.dumps(taken_of(settings, Path(name).name)).encode()
        else:
            try:
                content = read_bounded(path, MAX_VOCABULARY_BYTES)
            except OSError as error:
                fault = f"{self.source}: {name}: {read_fault(error)}: take another copy of it"
                raise UserError(fault) from error
        shown = self._files[name] = self.directory / name
        with plain_disk_errors(self.directory):
            shown.parent.mkdir(exist_ok=True)
            shown.write_bytes(content)


def taken_of(settings: Mapping[str, object], name: str) -> dict[str, object]:
    """A settings file without what would run code, lead to other files or change what comes out.

    Looks into groups of settings, too, which may be those of a part.
    """

    def taken(key: str) -> bool:
        names_a_file = name == "tokenizer_config.json" and key.endswith("_file")
        return key not in NOT_TAKEN and not names_a_file

    return {
        key: {inner: part for inner, part in value.items() if taken(inner)}
        if isinstance(value, dict) and key not in NAMES_OF_LABELS
        else value
        for key, value in settings.items()
        if taken(key)
    }

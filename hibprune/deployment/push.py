"""Publication of a finished run on the Hugging Face Hub."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hibprune import __version__
from hibprune.errors import UserError, shortened
from hibprune.execution.files import link_or_copy, open_bounded, read_fault, read_text_bounded
from hibprune.execution.output import LOG_FILE, STEPS, read_manifest
from hibprune.execution.runtime import MAX_GRAPH_BYTES
from hibprune.records.manifest import FILE_NAME

CARD = "README.md"
LEFT_BEHIND = (LOG_FILE, f"{STEPS}/")
"""What a run is worked through with; nobody else needs it."""
LONGEST_REASON = 300
LOG_IN = "set HF_TOKEN or log in with `hf auth login`"


@dataclass(frozen=True)
class Upload:
    """What goes to the Hub: the bytes of each file of `directory`, and the card as it reads it."""

    directory: Path
    recipe: str
    files: dict[str, int]
    card: dict[str, object]

    @property
    def lines(self) -> Iterator[str]:
        """The files with their bytes, and what the card's metadata say."""
        width = max(len(f"{size:,}") for size in self.files.values())
        for name, size in self.files.items():
            yield f"{size:>{width},} bytes  {name}"
        total = sum(self.files.values())
        yield f"{total:>{width},} bytes in {len(self.files)} files"
        said = {key: value for key, value in self.card.items() if key != "model-index"}
        told = "; ".join(
            f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}"
            for key, value in said.items()
        )
        yield f"card: {told or 'no metadata'}"
        if "license" not in said:
            yield "card: no licence: set export.license and run again, which takes seconds"


def prepared_upload(directory: Path) -> Upload:
    """The files that a finished run left for others, each within the directory, and its card.

    Raises:
        UserError: a variant or a file is missing, a file leads elsewhere, or the card is none.
    """
    manifest = read_manifest(directory)
    faults = [
        f"{one.name} could not be made ({shortened(one.reason, LONGEST_REASON)}): "
        "take it out of export.variants or mend that, and run again"
        for one in manifest.missing
    ]
    sizes: dict[str, int] = {}
    for name in sorted({*manifest.files, FILE_NAME}):
        if name.startswith(LEFT_BEHIND):
            continue
        try:
            sizes[name] = _size(directory, name)
        except OSError as error:
            faults.append(f"{shortened(name)}: cannot be read: {read_fault(error)}")
    if CARD not in sizes:
        faults.append(f"no {CARD}, which is the model card: run again")
    if faults:
        raise UserError("\n".join(f"{directory}: {fault}" for fault in faults))
    return Upload(directory, manifest.recipe, sizes, _card(directory / CARD))


def _size(directory: Path, name: str) -> int:
    """Bytes of a file, opened so that neither its path nor a link leads out. Raises OSError."""
    with open_bounded(directory / name, MAX_GRAPH_BYTES, within=directory) as file:
        return file.seek(0, os.SEEK_END)


def _card(path: Path) -> dict[str, object]:
    """The card's metadata as the Hub's own library reads them. Raises UserError."""
    from huggingface_hub import ModelCard

    try:
        with _quiet():
            card = ModelCard(read_text_bounded(path))
        return dict(card.data.to_dict())  # type: ignore[no-untyped-call]
    except Exception as error:  # YAML and huggingface_hub each raise their own
        reason = shortened(str(error).partition("\n")[0], LONGEST_REASON)
        raise UserError(
            f"{path}: metadata that the Hub cannot read: {reason}: run again"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def require_repository_name(name: str) -> None:
    """See that a name is `owner/name` as the Hub takes it. Raises UserError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
        is_one = name.count("/") == 1
    except HFValidationError:
        is_one = False
    if not is_one:
        raise UserError(f"{shortened(name)}: no name of a repository: write it as owner/name")


def is_logged_in() -> bool:
    """Whether huggingface_hub finds a token: in HF_TOKEN, or from a login."""
    from huggingface_hub import get_token

    return bool(get_token())


def push(upload: Upload, repository: str, private: bool) -> str:
    """Make the repository if there is none, and upload the files in one commit; returns its URL.

    The files are first shown in a directory of their own: what else lies beside them stays here.

    Raises:
        UserError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from requests.exceptions import RequestException

    api = HfApi(library_name="hibprune", library_version=__version__)
    try:
        with tempfile.TemporaryDirectory(prefix="hibprune-") as shown:
            for name in upload.files:
                target = Path(shown) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(upload.directory / name, target)
            made = api.create_repo(repository, private=private, repo_type="model", exist_ok=True)
            api.upload_folder(
                repo_id=repository,
                folder_path=shown,
                repo_type="model",
                commit_message=f"{upload.recipe}, made by hibprune {__version__}",
            )
    except (HfHubHTTPError, RequestException, OSError, ValueError) as error:
        reason = shortened(str(error).strip().partition("\n")[0], LONGEST_REASON)
        raise UserError(
            f"{repository}: not uploaded ({type(error).__name__}: {reason}): check name, rights of "
            "the token and the network"
        ) from error
    return str(made)

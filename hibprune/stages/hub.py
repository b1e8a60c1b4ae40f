"""Whether the Hugging Face Hub has what a recipe names."""

from __future__ import annotations

from typing import Literal

from hibprune.data import HuggingFaceDataset
from hibprune.data.dataset_files import split_fault
from hibprune.errors import UserError

PATIENCE = 10.0
"""Seconds that the Hub has for an answer."""


def require_on_hub(kind: Literal["model", "dataset"], name: str, revision: str | None) -> None:
    """Ask the Hub for a model or a data set, without downloading it.

    Raises:
        UserError: it is not there, may not be read, or the Hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from requests.exceptions import RequestException

    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        ask(name, revision=revision, timeout=PATIENCE)
    except (HfHubHTTPError, RequestException, OSError, ValueError) as error:
        raise UserError(
            f"{name}: not found on the Hub ({type(error).__name__}): check the name and the "
            "network, or pass --offline"
        ) from error


def require_split(source: HuggingFaceDataset) -> None:
    """Ask the Hub whether a data set that is there has the split; no answer is none.

    Raises:
        UserError: it has not.
    """
    import datasets

    try:
        names = datasets.get_dataset_split_names(
            source.path, config_name=source.name, revision=source.revision
        )
    except Exception:
        # Whatever datasets raises over a network, or a data set whose splits are told by no card.
        return
    fault = split_fault(names, source.split)
    if fault is not None:
        raise UserError(f"{source.path}: {fault}")

"""Whether the Hugging Face Hub has what a recipe names."""

from __future__ import annotations

from typing import Literal

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

"""Runs a model on one clip, under PyTorch or ONNX Runtime, through one kind of function."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from hibprune.errors import UserError, shortened

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

Predict = Callable[["dict[str, Tensor]"], np.ndarray]
"""Takes a model's inputs, returns what its task decodes with the batch first: logits or tokens."""

Outputs = Callable[["dict[str, Tensor]"], dict[str, np.ndarray]]
"""Takes a model's inputs, returns all that it gives out for them, by what each is called."""

Timed = Callable[["dict[str, Tensor]"], dict[str, Callable[[], object]]]
"""Takes a model's inputs, returns the work on them to time, by name: first that of the whole model,
then that of its parts."""

ONNX_DIRECTORY = "onnx"
"""Where the graphs lie in a directory shaped like a Hub repository."""

MASK = "attention_mask"
"""The input that is 1 on what is a clip's or text's own and 0 on what fills it up."""

MAX_GRAPH_BYTES = 2**31
"""What one ONNX file holds at most."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def choose_device(wanted: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        UserError: cuda is asked for where there is none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but torch sees no GPU: use auto or cpu")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def torch_predict(model: PreTrainedModel) -> Predict:
    """Prediction under PyTorch, on the device the model is on."""
    import torch

    device = next(model.parameters()).device

    def predict(inputs: dict[str, Tensor]) -> np.ndarray:
        with torch.inference_mode():
            logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits
        return np.asarray(logits.float().cpu().numpy())

    return predict


def session_options(device: str, threads: int | None = None) -> Any:
    """Options of an ONNX Runtime session, with the number of threads pinned if given."""
    import onnxruntime

    # What the package asks for when it is imported, where someone else has imported this before.
    onnxruntime.disable_telemetry_events()
    if device == "cuda":
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    # What goes wrong is raised as well; as a log it would be in colours, with a time.
    options.log_severity_level = 4
    # Idle threads of one session would take the processor from another in the same process, and
    # from what prepares the next clip.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options


def onnx_session(path: Path, device: str, threads: int | None = None) -> Any:
    """An ONNX Runtime session on one execution provider, never silently on another.

    Raises:
        UserError: the file cannot be loaded, or the provider is not to be had.
    """
    import onnxruntime

    provider = PROVIDERS[device]
    options = session_options(device, threads)
    with plain_onnx_errors(f"{path}: ONNX Runtime cannot load it"):
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    require_provider(session, provider, path)
    return session


@contextmanager
def plain_onnx_errors(said: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises into a line that begins with what is `said`.

    Raises:
        UserError: anything was raised.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # onnxruntime raises its own types, without a common base
        raise UserError(f"{said}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What onnxruntime says, without its own prefix, and the place and function of its source."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"/onnxruntime_src/\S+:\d+ (?:[^()]*\([^()]*\)(?: const)? )?", "", text)
    if isinstance(error, MemoryError) or re.search("bad_alloc|Failed to allocate|Arena", text):
        return "it takes more memory than there is"
    return shortened(text.partition("\n")[0] or repr(error), 200)


@dataclass(frozen=True)
class OnnxModel:
    """An exported model that is open.

    `takes` are the inputs of its first graph, `about` what that says of itself.
    """

    predict: Predict
    takes: frozenset[str]
    about: Mapping[str, Any]


def onnx_model(predict: Predict, session: Any) -> OnnxModel:
    """A model whose first graph is open in a session."""
    takes = frozenset(one.name for one in session.get_inputs())
    return OnnxModel(predict, takes, json_values(session.get_modelmeta().custom_metadata_map))


def json_values(properties: Mapping[str, str]) -> dict[str, Any]:
    """A graph's properties, each read as JSON; one whose text is none is left out."""
    found: dict[str, Any] = {}
    for key, text in properties.items():
        try:
            found[key] = json.loads(text)
        except (ValueError, RecursionError):
            continue
    return found


def guarded(call: Callable[Arguments, Result], path: Path) -> Callable[Arguments, Result]:
    """The same call of what was exported to `path`, which tells in a line of what goes wrong."""

    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        with plain_onnx_errors(f"{path}: ONNX Runtime fails"):
            return call(*arguments, **named)

    return run


def require_provider(session: Any, provider: str, path: Path) -> None:
    """See that a session runs where it was meant to.

    Raises:
        UserError: ONNX Runtime fell back to another provider.
    """
    active = session.get_providers()[0]
    if active != provider:
        raise UserError(
            f"{path}: ONNX Runtime fell back from {provider} to {active}: "
            "mend the CUDA installation or set device: cpu"
        )


def onnx_predict(session: Any) -> Predict:
    """Prediction under ONNX Runtime.

    Where a mask is wanted and none given, all of it counts; inputs that the graph does not take are
    left out: without heads, a mask of attention is none.
    """
    taken = {one.name for one in session.get_inputs()}

    def predict(inputs: dict[str, Tensor]) -> np.ndarray:
        feed = {name: value.cpu().numpy() for name, value in inputs.items() if name in taken}
        if MASK in taken and MASK not in feed:
            feed[MASK] = np.ones(next(iter(feed.values())).shape, np.int64)
        return np.asarray(session.run(["logits"], feed)[0])

    return predict

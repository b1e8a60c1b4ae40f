"""A graph that hears the waveform itself: the feature extractor's work in front of the model's."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from hibprune.deployment.exporter import plain_exporter
from hibprune.errors import UserError
from hibprune.execution.runtime import MASK, onnx_session, plain_onnx_errors
from hibprune.models.preprocessing import Preprocessor, SoundPreprocessor

INPUT = "waveform"
"""What the graph takes: (batch, samples) at the model's rate, between -1 and 1; and a mask beside
it where the model's own graph takes one."""
PREFIX = "front_end/"
QUIETEST, RANGE = 1e-10, 8.0
"""Whisper's: the least energy of a band, and how far below the loudest it counts, as log10."""


def waveform_graph_name(graph: str) -> str:
    """`model.onnx` is `model_waveform.onnx` with the waveform as its input."""
    path = PurePath(graph)
    return str(path.with_name(f"{path.stem}_waveform{path.suffix}"))


def require_waveform(preprocessor: Preprocessor, has_decoder: bool) -> None:
    """See that a model can have such a graph. Raises UserError."""
    fault = _fault(preprocessor, has_decoder)
    if fault is not None:
        raise UserError(f"export.waveform: {fault}: leave it out")


def _fault(preprocessor: Preprocessor, has_decoder: bool) -> str | None:
    if not isinstance(preprocessor, SoundPreprocessor):
        return "texts have no waveform"
    extractor = preprocessor.feature_extractor
    if isinstance(extractor, WhisperFeatureExtractor):
        if float(getattr(extractor, "dither", 0.0)):
            return "its feature extractor adds noise (dither)"
        return None
    if not isinstance(extractor, Wav2Vec2FeatureExtractor):
        return f"the work of {type(extractor).__name__} has no graph here"
    return "its encoder takes the waveform as it is" if has_decoder else None


def write_waveform_graph(extractor: Any, graph: Path, target: Path, opset: int) -> None:
    """Put the extractor's work before a graph whose first input is what the extractor gives.

    What is made on the way stays beside `target`.

    Raises:
        UserError: torch or onnx cannot do it at this opset.
    """
    import onnx

    with plain_exporter("export.waveform", opset):
        model, made = onnx.load(graph), target.with_suffix(".front-end.onnx")
        masked = MASK in {one.name for one in model.graph.input}
        _export(_front_end(extractor, masked), made, opset, masked)
        front = onnx.load(made)
        front.ir_version = model.ir_version
        front = onnx.compose.add_prefix(front, PREFIX, rename_inputs=False)
        taken = {"features": extractor.model_input_names[0], **({"mask": MASK} if masked else {})}
        joined = onnx.compose.merge_models(
            front, model, io_map=[(f"{PREFIX}{name}", own) for name, own in taken.items()]
        )
        onnx.save(joined, target)


def graph_difference(graph: Path, features: dict[str, Tensor], joined: Path, sound: Any) -> float:
    """How far what two graphs give out is apart, as a share of the largest value.

    One is given the features of clips, the other the clips (batch, samples) themselves, with the
    mask that is among the features.

    Raises:
        UserError: ONNX Runtime cannot run one of them.
    """
    given = {name: tensor.numpy() for name, tensor in features.items()}
    with plain_onnx_errors(f"{graph}: ONNX Runtime fails"):
        expected = onnx_session(graph, "cpu").run(None, given)
    heard = {INPUT: np.atleast_2d(np.asarray(sound, np.float32))}
    heard |= {MASK: given[MASK]} if MASK in given else {}
    with plain_onnx_errors(f"{joined}: ONNX Runtime fails"):
        found = onnx_session(joined, "cpu").run(None, heard)
    if [one.shape for one in expected] != [one.shape for one in found]:
        return float("inf")
    return max(
        float(np.abs(one - other).max(initial=0)) / (float(np.abs(one).max(initial=0)) or 1.0)
        for one, other in zip(expected, found, strict=True)
    )


def _front_end(extractor: Any, masked: bool) -> nn.Module:
    if isinstance(extractor, WhisperFeatureExtractor):
        return LogMel(extractor)
    if masked:
        return MaskedNormalisation(bool(extractor.do_normalize))
    return Normalisation() if extractor.do_normalize else nn.Identity()


class Normalisation(nn.Module):
    """Mean 0 and variance 1 of each clip, as Wav2Vec2FeatureExtractor makes them."""

    def forward(self, waveform: Tensor) -> Tensor:
        """Clips (batch, samples), all of one length."""
        centred = waveform - waveform.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + 1e-7)


class MaskedNormalisation(nn.Module):
    """The same over each clip's own samples, with zeros behind them; gives out the mask as well."""

    def __init__(self, normalises: bool) -> None:
        super().__init__()
        self.normalises = normalises

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Clips and mask, both (batch, samples)."""
        own = mask.to(waveform.dtype)
        if self.normalises:
            samples = own.sum(-1, keepdim=True)
            centred = (waveform - (waveform * own).sum(-1, keepdim=True) / samples) * own
            variance = (centred * centred).sum(-1, keepdim=True) / samples
            waveform = centred / torch.sqrt(variance + 1e-7)
        return waveform * own, torch.clone(mask)


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram, the Fourier transform as two convolutions.

    A clip is filled up with silence to the length of the extractor's window, or cut there.
    """

    cosines: Tensor
    sines: Tensor
    mel: Tensor

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        super().__init__()
        size = int(extractor.n_fft)
        self.samples, self.hop = int(extractor.n_samples), int(extractor.hop_length)
        self.reach = size // 2
        window = torch.hann_window(size, dtype=torch.float64)
        frequencies = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None]
        angles = 2 * torch.pi / size * frequencies * torch.arange(size, dtype=torch.float64)
        self.register_buffer("cosines", (torch.cos(angles) * window)[:, None].float())
        self.register_buffer("sines", (torch.sin(angles) * window)[:, None].float())
        self.register_buffer("mel", torch.from_numpy(np.asarray(extractor.mel_filters).T).float())

    def forward(self, waveform: Tensor) -> Tensor:
        """Clips (batch, samples) to (batch, bands, frames)."""
        silence = waveform.new_zeros((waveform.shape[0], self.samples))
        filled = torch.cat([waveform, silence], dim=1)[:, None, : self.samples]
        around = functional.pad(filled, (self.reach, self.reach), mode="reflect")
        real = functional.conv1d(around, self.cosines, stride=self.hop)
        imaginary = functional.conv1d(around, self.sines, stride=self.hop)
        power = (real * real + imaginary * imaginary)[..., :-1]
        bands = torch.log10(torch.clamp(torch.matmul(self.mel, power), min=QUIETEST))
        loudest = torch.amax(bands, dim=(1, 2), keepdim=True)
        return (torch.maximum(bands, loudest - RANGE) + 4.0) / 4.0


def _export(module: nn.Module, target: Path, opset: int, masked: bool) -> None:
    example = [torch.zeros(2, 1000), *([torch.ones(2, 1000, dtype=torch.long)] if masked else [])]
    inputs = [INPUT, *([MASK] if masked else [])]
    torch.onnx.export(
        module.eval(),
        tuple(example),
        target,
        input_names=inputs,
        output_names=["features", *(["mask"] if masked else [])],
        dynamic_axes={name: {0: "batch", 1: "samples"} for name in inputs},
        opset_version=opset,
        dynamo=False,
    )

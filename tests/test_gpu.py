"""The same run on a GPU: skipped, and said so, where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from commands import invoke, manifest, run
from standin import StandIn
from tiny_models import TINY_MODELS
from torch import Tensor
from torch.nn import functional

from hibprune.attribution import HeadInformationBottleneck
from hibprune.attribution.session import Sample, Session
from hibprune.cli import main
from hibprune.records.manifest import Manifest
from hibprune.tasks import Batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def cross_entropy(model: torch.nn.Module, batch: Batch) -> Tensor:
    logits = model(**batch.inputs).logits
    classes = torch.tensor([target[0] for target in batch.targets], device=logits.device)
    return functional.cross_entropy(logits, classes, reduction="none")


def test_a_run_stays_on_the_gpu_and_says_so(stand_in: StandIn, tmp_path: Path) -> None:
    words = ["run", str(stand_in.recipe), "--output", str(tmp_path / "out"), "--device", "cuda"]
    words += ["--set", "export.variants=[fp32, fp16]", "--set", "benchmark.rivals=true"]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    manifest = Manifest.model_validate_json(result.stdout)
    assert manifest.device == "cuda"
    assert manifest.machine.gpu == torch.cuda.get_device_name()
    assert not manifest.missing
    names = [one.name for one in manifest.variants]
    assert names == ["original", "original-int8", "pruned", "pruned-fp16"]
    for one in manifest.variants:
        providers = {latency.provider for latency in one.latency}
        assert providers == {"CUDAExecutionProvider"}, one.name
    assert manifest.repair is not None
    assert manifest.repair.sublayers
    fp16 = manifest.variant("pruned-fp16").agreement
    assert fp16 is not None
    assert fp16.relative_diff is not None
    assert fp16.relative_diff < 0.05


ON_THE_GPU = ("--set", "device=cuda", "--set", "benchmark.rivals=false", "--quiet")
TASKS = (
    "speech_recognition",
    "encoder_decoder",
    "encoder_decoder_on_waveforms",
    "text_classification",
)
MAGNITUDE = ("--set", "attribution={method: magnitude}")


def on_the_gpu(stand_in: StandIn) -> Manifest:
    """The manifest of a run, every graph of which was timed there."""
    found = manifest(stand_in)
    assert found.device == "cuda"
    assert not found.missing
    for one in found.variants:
        assert {latency.provider for latency in one.latency} == {"CUDAExecutionProvider"}, one.name
    return found


@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_there(task: str, stand_in_of: Callable[[str], StandIn]) -> None:
    """And leaves a directory that is what it was measured as."""
    stand_in = stand_in_of(task)
    done = run(stand_in, *ON_THE_GPU, *MAGNITUDE, "--set", "export.variants=[fp32, fp16]")
    assert done.exit_code == 0, done.output or done.exception
    found = on_the_gpu(stand_in)
    assert found.repair is not None
    half = found.variant("pruned-fp16").agreement
    assert half is not None
    assert half.equal >= 0.8
    verified = invoke("verify", stand_in.root / "out")
    assert verified.exit_code == 0, verified.output


def test_every_kind_goes_there(stand_in: StandIn) -> None:
    budget = "budget={heads: 3, neurons: 0.5, channels: 0.25, ranks: 0.5}"
    refined = ("--set", "removal.refine={steps: 5}", "--set", "export.variants=[fp32]")
    done = run(stand_in, *ON_THE_GPU, *MAGNITUDE, "--set", budget, *refined)
    assert done.exit_code == 0, done.output or done.exception
    found = on_the_gpu(stand_in)
    assert found.neurons is not None
    assert found.channels is not None
    assert found.ranks is not None
    assert found.repair is not None
    assert found.repair.refinements


def test_a_decoders_units_go_there(stand_in_of: Callable[[str], StandIn]) -> None:
    stand_in = stand_in_of("encoder_decoder")
    budget = "budget={heads: 2, decoder_neurons: 0.5, decoder_heads: 0.5, cross_heads: 0.5}"
    settings = ("--set", budget, "--set", "export.variants=[fp32]")
    done = run(stand_in, *ON_THE_GPU, *MAGNITUDE, *settings)
    assert done.exit_code == 0, done.output or done.exception
    found = on_the_gpu(stand_in)
    assert found.decoder_neurons is not None
    assert found.cross_heads is not None


def test_a_decoder_labels_clips_there(stand_in_of: Callable[[str], StandIn]) -> None:
    """By PyTorch, where measuring is done by ONNX Runtime."""
    stand_in = stand_in_of("encoder_decoder")
    settings = ("--set", "calibration.labels=model", "--set", "export.variants=[fp32]")
    done = run(stand_in, *ON_THE_GPU, *MAGNITUDE, *settings)
    assert done.exit_code == 0, done.output or done.exception
    on_the_gpu(stand_in)


def test_it_recovers_there(stand_in: StandIn) -> None:
    recover = "recover={steps: 6, learning_rate: 1.0e-3, held_out: 0.2, checkpoint_steps: 2}"
    settings = ("--set", recover, "--set", "export.variants=[fp32]")
    done = run(stand_in, *ON_THE_GPU, *MAGNITUDE, *settings)
    assert done.exit_code == 0, done.output or done.exception
    found = on_the_gpu(stand_in).recovery
    assert found is not None
    assert found.recovery.ended == "all steps"


@pytest.mark.parametrize("task", ["keyword_spotting", "text_classification"])
def test_it_explains_there(task: str, stand_in_of: Callable[[str], StandIn]) -> None:
    stand_in = stand_in_of(task)
    out = stand_in.root / "out"
    quickly = ("--samples", "3", "--quiet", "--device", "cuda")
    method = "--set=attribution={method: hib, steps: 2}"
    done = invoke("explain", stand_in.recipe, "--output", out, method, *quickly)
    assert done.exit_code == 0, done.output or done.exception
    assert (out / "explain.html").exists()


def test_information_scores_agree_with_the_cpu_where_noise_plays_no_part() -> None:
    """With a vanishing λ and no random start both devices optimise the same thing."""
    method = HeadInformationBottleneck(
        method="hib",
        bottleneck="mutual-information",
        score="information",
        noise=1e-3,
        initial_scale=0.0,
        steps=5,
        beta=0.1,
    ).for_task("keyword-spotting")
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(f"clip{i}", {"input_values": torch.randn(1, 1600, generator=generator)}, (i,))
        for i in range(3)
    ]
    model = TINY_MODELS[0].build()
    on_cpu = method.attribute(model, samples, cross_entropy, Session())
    on_gpu = method.attribute(model.cuda(), samples, cross_entropy, Session())
    assert torch.allclose(
        torch.tensor(on_cpu.per_sample), torch.tensor(on_gpu.per_sample), rtol=1e-2
    )

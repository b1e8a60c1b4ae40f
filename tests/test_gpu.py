"""The same run on a GPU: skipped, and said so, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
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

"""Variants that cannot be made or are no longer asked for; the others are measured all the same."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from commands import faults, invoke, refused
from manifests import unwrapped
from onnx import numpy_helper
from standin import StandIn

from hibprune.compression.quantize.fp16 import convert_fp16
from hibprune.errors import UserError
from hibprune.execution import files
from hibprune.execution.files import sha256_of, write_via_temporary
from hibprune.records.manifest import Manifest
from hibprune.stages import variants

QUICK = (
    "--set", "benchmark.rivals=true", "--set", "attribution={method: magnitude}",
    "--set", "export.batches=[1]", "--set", "export.seconds=[0.5]",
    "--set", "benchmark.repetitions=2", "--set", "validation.limit=8",
    # What the guard leaves in float is not what this is about.
    "--set", "quantize.max_drop=100",
)  # fmt: skip
ALL = ("--set", "export.variants=[fp32,int8,fp16]")
INT8 = ("--set", "export.variants=[fp32,int8]")
LOWER_STEPS = {"measure-pruned-fp16", "convert-pruned-fp16"}


@pytest.fixture(scope="module")
def base(
    stand_ins: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    drawing: Callable[[], contextlib.AbstractContextManager[None]],
) -> Path:
    """A task in `task` with a finished run of every variant in `out`, to be copied."""
    place = tmp_path_factory.mktemp("base")
    shutil.copytree(stand_ins("keyword_spotting"), place / "task")
    with drawing():
        result = run(place / "out", *ALL)
    assert result.exit_code == 0, result.output or result.exception
    return place


@pytest.fixture
def out(base: Path, tmp_path: Path) -> Path:
    """That run once more, with its task beside it."""
    return Path(shutil.copytree(base, tmp_path / "base")) / "out"


def run(out: Path, *options: str) -> Result:
    return invoke("run", out.parent / "task/recipe.yaml", "--output", out, *QUICK, *options)


def again(out: Path, *options: str) -> set[str]:
    """Run to the end; returns the steps that were done anew."""
    before = steps_of(out)
    result = run(out, "--quiet", *options)
    assert result.exit_code == 0, result.output or result.exception
    return {name for name, content in steps_of(out).items() if before.get(name) != content}


def steps_of(out: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (out / "steps").glob("*.json")}


def manifest_of(out: Path) -> Manifest:
    return Manifest.model_validate_json((out / "manifest.json").read_text())


def names_in(out: Path) -> set[str]:
    return {path.name for place in ("onnx", "predictions") for path in (out / place).iterdir()}


ALL_FILES = {
    "model.onnx", "model_quantized.onnx", "model_fp16.onnx", "original.jsonl",
    "original-int8.jsonl", "pruned.jsonl", "pruned-int8.jsonl", "pruned-fp16.jsonl",
}  # fmt: skip
OF_FP16 = {"model_fp16.onnx", "pruned-fp16.jsonl"}

# Asked for wrongly ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("export.variants=[fp32,int4]", ("export.variants", "int4", "int8", "fp16")),
        ("export.variants=[int8]", ("export.variants", "fp32")),
        ("export.variants=[fp32,int8,int8]", ("export.variants", "once")),
        ("export.variants=[]", ("export.variants",)),
        ("gates.variant=pruned-int4", ("gates.variant", "pruned-int4", "pruned-int8")),
        ("gates.variant=original-int8", ("gates.variant", "original-int8")),
        ("gates.variant=pruned-int8", ("gates.variant", "pruned-int8", "add int8")),
        ("gates.variant=pruned-fp16", ("gates.variant", "pruned-fp16", "add fp16")),
    ],
)
def test_a_variant_that_does_not_exist_is_one_plain_line(
    stand_in: StandIn, override: str, words: tuple[str, ...]
) -> None:
    """The stand-in asks for fp32 alone."""
    (fault,) = refused(stand_in, "--set", override)
    for word in words:
        assert word in fault


# Cannot be made ------------------------------------------------------------------------------


def failing(text: str) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise UserError(text)

    return fail


def test_a_variant_that_cannot_be_made_is_told_of_and_the_others_are_measured(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an earlier run could make it: nothing is left of that."""
    monkeypatch.setattr(variants, "convert_fp16", failing(f"{out}/onnx/model.onnx: too loud"))
    # Another repair, so that all that is pruned is made again.
    result = run(out, *ALL, "--set", "removal.repair=none", "--set", "gates.max_file_mb=9")
    assert result.exit_code == 0, result.output or result.exception
    manifest = manifest_of(out)
    reason = "onnx/model.onnx: too loud"
    assert [one.model_dump() for one in manifest.missing] == [
        {"name": "pruned-fp16", "precision": "fp16", "reason": reason}
    ]
    made = ["original", "original-int8", "pruned", "pruned-int8"]
    assert [one.name for one in manifest.variants] == made
    assert all(one.latency and one.metric.n == 8 for one in manifest.variants)
    assert names_in(out) == ALL_FILES - OF_FP16
    assert not any("fp16" in name for name in manifest.files)
    sentence = f"pruned-fp16 was not made: {reason}"
    assert sentence in unwrapped(result.output)
    assert sentence in unwrapped((out / "report.md").read_text().replace("\\", ""))
    assert sentence in unwrapped((out / "README.md").read_text().replace("\\", ""))
    # Once it can be, it is, with the recipe changed and changed back.
    monkeypatch.undo()
    assert again(out, *ALL) >= {"convert-pruned-fp16", "measure-pruned-fp16", "benchmark"}
    assert names_in(out) == ALL_FILES


def test_int8_that_cannot_be_made_is_told_of_with_what_helps(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the pruned model nor of the original; the same text in every run."""

    def fail(directory: Path, *_: object) -> None:
        raise UserError(f"{directory}/onnx/model.onnx: nothing: take int8 out of export.variants")

    monkeypatch.setattr(variants, "quantize_guarded", fail)
    result = run(out, "--set", "quantize.full_range=true", "--quiet", *ALL)
    assert result.exit_code == 0, result.output or result.exception
    manifest = manifest_of(out)
    assert {one.name: one.reason for one in manifest.missing} == {
        "original-int8": "original/onnx/model.onnx: nothing: set benchmark.rivals: false",
        "pruned-int8": "onnx/model.onnx: nothing: take int8 out of export.variants",
    }
    assert [one.name for one in manifest.variants] == ["original", "pruned", "pruned-fp16"]
    assert names_in(out) == ALL_FILES - {
        "model_quantized.onnx", "original-int8.jsonl", "pruned-int8.jsonl",
    }  # fmt: skip
    assert "Plain int8" not in (out / "report.md").read_text()


def test_a_gate_on_a_variant_that_cannot_be_made_fails(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it limits; its line says why."""
    monkeypatch.setattr(variants, "convert_fp16", failing("too loud"))
    gates = ("max_file_mb=9", "min_speedup=0.01", "variant=pruned-fp16")
    options = [word for gate in gates for word in ("--set", f"gates.{gate}")]
    result = run(out, *ALL, *options, "--set", "quantize.full_range=true")
    assert result.exit_code == 3, result.output or result.exception
    manifest = manifest_of(out)
    assert manifest.judged == "pruned-fp16"
    assert [(gate.value, gate.verdict) for gate in manifest.gates] == [(None, "failed")] * 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("gate failed")]
    assert len(lines) == 2
    assert all("the variant was not made" in line for line in lines)
    assert "(ratio of medians)" not in result.output


def without_numbers(source: Path, target: Path, feeds: object) -> tuple[str, ...]:
    """Write a graph whose logits are no numbers, whatever it hears."""
    model = onnx.load(source)
    (bias,) = (one for one in model.graph.initializer if one.name == "classifier.bias")
    nothing = np.full_like(numpy_helper.to_array(bias), np.nan)
    bias.CopyFrom(numpy_helper.from_array(nothing, bias.name))
    onnx.save(model, target)
    return ()


def test_a_variant_that_fails_on_a_validation_clip_is_not_left(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as float16 that overflows on a clip that it was not tried on."""
    monkeypatch.setattr(variants, "convert_fp16", without_numbers)
    # Which variant gates would hold does not matter where none is set.
    held = ("--set", "gates.variant=pruned-fp16")
    result = run(out, *ALL, *held, "--set", "removal.repair=none")
    assert result.exit_code == 0, result.output or result.exception
    manifest = manifest_of(out)
    (missing,) = manifest.missing
    assert missing.name == "pruned-fp16"
    assert "not finite" in missing.reason
    assert "pruned-int8" in [one.name for one in manifest.variants]
    assert names_in(out) == ALL_FILES - OF_FP16
    assert not LOWER_STEPS & steps_of(out).keys()
    assert "pruned-fp16 was not made: " in unwrapped(result.output)


def test_a_full_disk_is_no_reason_against_a_variant(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path, feeds: object) -> None:
        def write(_: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        write_via_temporary(target, write)

    monkeypatch.setattr(variants, "convert_fp16", full)
    (fault,) = faults(run(out, "--quiet", *ALL, "--set", "quantize.full_range=true"))
    assert "the disk is full" in fault
    assert not (out / "manifest.json").exists()
    monkeypatch.setattr(variants, "convert_fp16", convert_fp16)
    assert "convert-pruned-fp16" in again(out, *ALL, "--set", "quantize.full_range=true")
    assert manifest_of(out).missing == ()


def test_disks_without_second_names_for_files_do(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", no_links)
    shutil.copytree(base / "task", tmp_path / "task")
    assert again(tmp_path / "out", *INT8)
    assert sha256_of(tmp_path / "out/onnx/model_quantized.onnx") == sha256_of(
        base / "out/onnx/model_quantized.onnx"
    )


# Run again -----------------------------------------------------------------------------------


@pytest.mark.draws
def test_a_second_run_redoes_nothing(out: Path) -> None:
    kept = {name: sha256_of(out / name) for name in manifest_of(out).files}
    assert again(out, *ALL) == set()
    assert {name: sha256_of(out / name) for name in kept} == kept


def test_other_variants_redo_conversion_and_what_follows_alone(out: Path) -> None:
    assert again(out, *INT8) == {"benchmark", "example"}
    assert names_in(out) == ALL_FILES - OF_FP16
    assert not any("fp16" in name for name in manifest_of(out).files)
    assert "pruned-fp16" not in (out / "report.md").read_text()
    assert again(out, *ALL) == {
        "convert-pruned-fp16", "measure-pruned-fp16", "benchmark", "example",
    }  # fmt: skip
    assert names_in(out) == ALL_FILES


def test_nothing_stays_of_a_rival_that_is_not_asked_for(out: Path) -> None:
    assert again(out, *ALL, "--set", "benchmark.rivals=false") == {"benchmark"}
    assert names_in(out) == ALL_FILES - {"original-int8.jsonl"}
    assert "original-int8" not in (out / "manifest.json").read_text()


def test_a_graph_that_somebody_else_changed_is_left(out: Path) -> None:
    """It is no longer ours to remove."""
    (out / "onnx/model_fp16.onnx").write_bytes(b"mine")
    again(out, *INT8)
    assert (out / "onnx/model_fp16.onnx").read_bytes() == b"mine"
    assert not (out / "predictions/pruned-fp16.jsonl").exists()


def test_settings_of_int8_redo_int8_alone(out: Path) -> None:
    redone = again(out, *ALL, "--set", "quantize.full_range=true")
    assert {name for name in redone if "fp16" not in name} == {
        "convert-original-int8", "convert-pruned-int8", "measure-original-int8",
        "measure-pruned-int8", "benchmark", "example",
    }  # fmt: skip


TIMED = (
    "README.md", "report.md", "report.html", "figures/latency.png", "figures/variants.png",
    "manifest.json", "run.log",
)  # fmt: skip


def without_times(content: Any) -> Any:
    """A manifest, or part of it, but for what was measured with a clock and digests of that."""
    if isinstance(content, dict):
        return {
            key: without_times(value)
            for key, value in content.items()
            if key not in {"latency", "seconds", "steps", *TIMED}
        }
    return [without_times(one) for one in content] if isinstance(content, list) else content


@pytest.mark.draws
@pytest.mark.exports
def test_the_same_recipe_gives_the_same_bytes_but_for_times(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "task", tmp_path / "task")
    with contextlib.chdir(tmp_path):
        result = invoke("run", "task/recipe.yaml", "--output", "out", "--quiet", *QUICK, *ALL)
    assert result.exit_code == 0, result.output or result.exception
    one, other = base / "out", tmp_path / "out"
    assert names_in(one) == names_in(other) == ALL_FILES
    for name in sorted(manifest_of(one).files.keys() - set(TIMED)):
        assert sha256_of(one / name) == sha256_of(other / name), name
    manifests = [json.loads((out / "manifest.json").read_text()) for out in (one, other)]
    assert without_times(manifests[0]) == without_times(manifests[1])

"""What the tests of the command line share."""

from __future__ import annotations

import base64
import contextlib
import gc
import multiprocessing.forkserver
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from standin import StandIn
    from tiny_exports import Exports, TinyExport
    from tiny_models import TinyModel

BLANK_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt"/>'
BLANK_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP6DwABBQECz6AuzQAAAABJRU5ErkJggg=="
)


def pytest_configure() -> None:
    """Before anything imports torch: threads of tiny operations only wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Importing hibprune does the same; some tests import onnxruntime first.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    _preload_more()


def _preload_more() -> None:
    """Let what reads a stranger's graph be forked with all it imports, two seconds' worth each."""
    preload = multiprocessing.forkserver.set_forkserver_preload
    multiprocessing.forkserver.set_forkserver_preload = lambda names: preload([*names, *READERS])


READERS = (
    "onnxruntime",
    "optimum.onnxruntime.modeling_seq2seq",
    "transformers.generation.utils",
)

LONGEST = (
    "test_real.py",
    "test_resume.py",
    "test_relative_paths.py",
    "test_fp16.py",
    "test_seq2seq_input.py",
    "test_methods.py",
    "test_missing_variants.py",
    "test_refine.py",
    "test_checkpoint.py",
    "test_generation.py",
    "test_mix_runs.py",
    "test_compare_repair.py",
    "test_hf_head_pruning.py",
    "test_speedup.py",
    "test_bad_output.py",
    "test_shipped.py",
    "test_memory.py",
    "test_cli.py",
    "test_gpu_script.py",
    "test_predict.py",
    "test_variants.py",
    "test_ranks.py",
    "test_rounds.py",
    "test_check.py",
)
"""Files that take half a minute and more, most of them with few tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one that came last would keep a single process busy."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Once all is imported: the exporter collects garbage, and would look through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves pictures blank but for tests marked `draws`: they take a quarter of a tiny run."""
    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", _save_blank)


def _save_blank(figure: object, path: Path, **how: object) -> None:
    Path(path).write_bytes(BLANK_SVG if Path(path).suffix == ".svg" else BLANK_PNG)


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str, Callable[[Path], object]], Path]:
    """A directory by name, filled once for all processes that tests run in, not to be changed."""
    own = tmp_path_factory.getbasetemp()
    root = (own.parent if hasattr(request.config, "workerinput") else own) / "made-once"
    root.mkdir(exist_ok=True)

    def directory(name: str, fill: Callable[[Path], object]) -> Path:
        made = root / name
        with FileLock(root / f"{name}.lock"):
            if not (root / f"{name}.done").exists():
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                fill(made)
                (root / f"{name}.done").touch()
        return made

    return directory


@pytest.fixture(scope="session")
def stand_ins(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], Path]:
    """The directory of a stand-in by the name of its maker; made once, not to be changed."""
    import standin

    return lambda name: made_once(name, getattr(standin, name))


@pytest.fixture
def stand_in_of(stand_ins: Callable[[str], Path], tmp_path: Path) -> Callable[[str], StandIn]:
    """A stand-in by the name of its maker, in a directory of its own, to be spoiled."""
    from standin import StandIn

    return lambda name: StandIn(Path(shutil.copytree(stand_ins(name), tmp_path / name)))


@pytest.fixture
def stand_in(stand_ins: Callable[[str], Path], tmp_path: Path) -> StandIn:
    """A keyword spotter in a directory of its own, to be spoiled."""
    from standin import StandIn

    return StandIn(Path(shutil.copytree(stand_ins("keyword_spotting"), tmp_path / "task")))


@pytest.fixture
def reviews(stand_in_of: Callable[[str], StandIn]) -> StandIn:
    """A classifier of text in a directory of its own, to be spoiled."""
    return stand_in_of("text_classification")


@pytest.fixture(scope="session")
def finished(
    stand_ins: Callable[[str], Path], made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Callable[[str], Path]:
    """The directory of a finished run of a stand-in by name; made once, not to be changed."""
    return lambda name: made_once(f"finished-{name}", _finishing(stand_ins, name)) / name


@pytest.fixture(scope="session")
def finished_in_int8(
    stand_ins: Callable[[str], Path], made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Callable[[str], Path]:
    """The same, with the pruned model in int8 beside it, however much that lost."""
    wanted = (
        "--set=export.variants=[fp32, int8]", "--set=quantize.max_drop=100",
        "--set=benchmark.rivals=true",
    )  # fmt: skip
    return lambda name: made_once(f"in-int8-{name}", _finishing(stand_ins, name, *wanted)) / name


@pytest.fixture(scope="session")
def recogniser_in_all_precisions(
    stand_ins: Callable[[str], Path], made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Path:
    """The run of an encoder–decoder in fp32, int8 and fp16 on six clips."""
    wanted = (
        "export.variants=[fp32,int8,fp16]", "benchmark.rivals=true",
        "attribution={method: magnitude}", "export.batches=[1]", "export.seconds=[0.5]",
        "validation.limit=6", "calibration.samples=4", "benchmark.repetitions=2",
        # The guard is not what this is about, and would measure dozens of files.
        "quantize.max_drop=10",
    )  # fmt: skip
    name = "encoder_decoder"
    options = [f"--set={one}" for one in wanted]
    return made_once(f"in-all-{name}", _finishing(stand_ins, name, *options)) / name


def _finishing(
    stand_ins: Callable[[str], Path], name: str, *options: str
) -> Callable[[Path], None]:
    from commands import invoke

    def finish(working: Path) -> None:
        recipe = os.path.relpath(stand_ins(name) / "recipe.yaml", working)
        # As people do it: from inside a directory, with paths that start there.
        with contextlib.chdir(working):
            result = invoke("run", recipe, "--output", name, "--quiet", *options)
        assert result.exit_code == 0, result.output

    return finish


@pytest.fixture(scope="session")
def tiny_exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """The graphs of a tiny model, whole or without some heads; made once, not to be changed."""
    from tiny_exports import export_tiny

    made: dict[tuple[str, str | None], TinyExport] = {}

    def exported(tiny: TinyModel, plan: str | None = None) -> TinyExport:
        key = (tiny.name, plan)
        if key not in made:
            made[key] = export_tiny(tiny, tmp_path_factory.mktemp(tiny.name), plan)
        return made[key]

    return exported

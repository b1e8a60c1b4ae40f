"""What the tests of the command line share."""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import multiprocessing.forkserver
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    "graph_sessions",
    "optimum.onnxruntime.modeling_seq2seq",
    "transformers.generation.utils",
)

LONGEST = (
    "test_resume.py",
    "test_relative_paths.py",
    "test_fp16.py",
    "test_methods.py",
    "test_missing_variants.py",
    "test_refine.py",
    "test_checkpoint.py",
    "test_decoder_runs.py",
    "test_recover_runs.py",
    "test_mix_runs.py",
    "test_compare_repair.py",
    "test_hf_head_pruning.py",
    "test_speedup.py",
    "test_bad_output.py",
    "test_memory.py",
    "test_cli.py",
    "test_gpu_script.py",
    "test_verify.py",
    "test_seq2seq_input.py",
    "test_generation.py",
    "test_predict.py",
    "test_variants.py",
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


@pytest.fixture(scope="session", autouse=True)
def sessions_of_graphs() -> None:
    """Here, as in what is forked from here."""
    import graph_sessions  # noqa: F401


class Earnest:
    """What a test does in earnest, which is spared elsewhere: the names of its markers."""

    asked: frozenset[str] = frozenset()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture, of whatever scope."""
    Earnest.asked = frozenset(mark.name for mark in item.iter_markers())


@pytest.fixture(scope="session")
def drawing() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """For fixtures of tests that look at pictures: what is run within it draws them."""

    @contextlib.contextmanager
    def drawn() -> Iterator[None]:
        asked, Earnest.asked = Earnest.asked, Earnest.asked | {"draws"}
        try:
            yield
        finally:
            Earnest.asked = asked

    return drawn


@pytest.fixture(scope="session", autouse=True)
def undrawn() -> Iterator[None]:
    """Leaves pictures blank but for tests marked `draws`: they take a quarter of a tiny run."""
    from matplotlib.figure import Figure

    import hibprune.report.files
    from hibprune.execution.files import write_via_temporary

    def blank(draw: Callable[..., None]) -> Callable[..., None]:
        def picture(*given: Any, **options: Any) -> None:
            if "draws" in Earnest.asked:
                return draw(*given, **options)
            (path,) = (one for one in given if isinstance(one, Path))
            return write_via_temporary(path, lambda file: _save_blank(None, file))

        return picture

    def saved(figure: Figure, path: Path, **how: Any) -> None:
        (draw if "draws" in Earnest.asked else _save_blank)(figure, path, **how)

    draw = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", saved)
        for name in PICTURES:
            patch.setattr(hibprune.report.files, name, blank(getattr(hibprune.report.files, name)))
        yield


PICTURES = ("variants_figure", "head_map", "score_spread", "latency_figure", "recovery_figure")
"""Of a run; laying them out takes as long as all of its other reporting."""


def _save_blank(figure: object, path: Path, **how: object) -> None:
    path = Path(path)
    path.write_bytes(BLANK_SVG if path.suffix == ".svg" else BLANK_PNG)


@pytest.fixture(scope="session", autouse=True)
def exported_once(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Iterator[None]:
    """Lets runs take the graphs of a model that was exported before, but in tests of `exports`.

    Equal are models of one class with the same settings, modules and weights, to the last bit.
    """
    import hibprune.stages.export
    from hibprune.execution.files import scratch_directory

    export = hibprune.stages.export.export_onnx

    def again(model: Any, directory: Path, task: str, opset: int, files: tuple[str, ...]) -> None:
        if "exports" in Earnest.asked:
            return export(model, directory, task, opset, files)
        name = f"graphs-{_identity(model, task, opset, files)}"
        made = made_once(name, lambda place: export(model, place, task, opset, files))
        with scratch_directory(directory) as scratch:
            for file in files:
                shutil.copyfile(made / file, scratch / file)
                (scratch / file).replace(directory / file)
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hibprune.stages.export, "export_onnx", again)
        yield


def _identity(model: Any, *asked: object) -> str:
    generation = getattr(model, "generation_config", None)
    settings = [model.config.to_json_string(use_diff=False), repr(model), repr(asked)]
    settings.append("" if generation is None else generation.to_json_string())
    digest = hashlib.sha256("\n".join((type(model).__qualname__, *settings)).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()[:32]


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
def tiny_exports(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Exports:
    """The graphs of a tiny model, whole or without some heads; made once, not to be changed."""
    from tiny_exports import TinyExport, export_tiny

    def exported(tiny: TinyModel, plan: str | None = None) -> TinyExport:
        name = f"tiny-{tiny.name}-{plan or 'whole'}".replace(" ", "-")
        return TinyExport(tiny, made_once(name, lambda place: export_tiny(tiny, place, plan)))

    return exported

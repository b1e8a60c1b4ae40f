"""`hibprune push`: what goes to the Hub, and what must not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from commands import faults, invoke


class Hub:
    """Takes the place of `HfApi`, and keeps what it is given."""

    repositories: list[tuple[str, bool]]
    uploaded: dict[str, bytes]

    def __init__(self, **_: Any) -> None:
        pass

    def create_repo(self, repo_id: str, *, private: bool, **how: Any) -> str:
        assert how == {"repo_type": "model", "exist_ok": True}
        Hub.repositories.append((repo_id, private))
        return f"https://hub.invalid/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, **_: Any) -> None:
        assert [repo_id] == [name for name, _ in Hub.repositories]
        top = Path(folder_path)
        found = [path for path in top.rglob("*") if path.is_file()]
        Hub.uploaded = {path.relative_to(top).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.repositories, Hub.uploaded = [], {}
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_made_up")
    return Hub


@pytest.fixture
def directory(finished: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished("keyword_spotting"), tmp_path / "model"))


def test_what_the_manifest_names_goes_and_nothing_else(
    directory: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "secret.txt").write_text("not ours")
    (directory / "figures/elsewhere.png").symlink_to("/etc/hostname")
    named = json.loads((directory / "manifest.json").read_text())["files"]
    assert {"run.log", "steps/.hibprune", "secret.txt"}.isdisjoint(named)

    dry = invoke("push", directory, "someone/pruned", "--dry-run")
    assert dry.exit_code == 0, dry.output
    lines = dry.stdout.splitlines()
    sizes = {name: (directory / name).stat().st_size for name in [*named, "manifest.json"]}
    listed = {line.split()[-1]: line.split()[0] for line in lines if " bytes  " in line}
    assert listed == {name: f"{size:,}" for name, size in sizes.items()}
    assert any(line.startswith("card: ") and "library_name transformers" in line for line in lines)
    assert lines[-1] == "would go to someone/pruned; nothing is uploaded"
    assert hub.repositories == []

    sent = invoke("push", directory, "someone/pruned", "--private")
    assert sent.exit_code == 0, sent.output
    assert sent.stdout.splitlines()[-1] == "uploaded to https://hub.invalid/someone/pruned"
    assert hub.repositories == [("someone/pruned", True)]
    assert hub.uploaded == {name: (directory / name).read_bytes() for name in sizes}

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    hub.repositories.clear()
    without = invoke("push", directory, "someone/pruned")
    assert without.exit_code == 0
    assert without.stdout.splitlines()[-1].startswith("no token: set HF_TOKEN or log in with")
    assert hub.repositories == []


def test_what_verify_does_not_pass_stays(directory: Path, hub: type[Hub]) -> None:
    (directory / "config.json").write_text((directory / "config.json").read_text() + "\n")
    result = invoke("push", directory, "someone/pruned")
    assert f"{directory}: config.json: not as the run left it: copy it again" in faults(result)

    (directory / "onnx/model.onnx").rename(directory / "elsewhere.onnx")
    assert faults(invoke("push", directory, "someone/pruned")) == [
        f"{directory}: onnx/model.onnx: cannot be read: no such file or directory"
    ]
    # Not even where it is the same file.
    (directory / "onnx/model.onnx").symlink_to(directory / "elsewhere.onnx")
    (fault,) = faults(invoke("push", directory, "someone/pruned"))
    assert fault.startswith(f"{directory}: onnx/model.onnx: cannot be read: ")

    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["missing"] = [{"name": "pruned-fp16", "precision": "fp16", "reason": "of a reason"}]
    (directory / "onnx/model.onnx").unlink()
    (directory / "elsewhere.onnx").rename(directory / "onnx/model.onnx")
    for name in ("run.log", "../../outside", "steps/plan.json"):
        manifest["files"][name] = "0" * 64
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert faults(invoke("push", directory, "someone/pruned")) == [
        f"{directory}: pruned-fp16 could not be made (of a reason): take it out of "
        "export.variants or mend that, and run again",
        f"{directory}: ../../outside: cannot be read: not inside {directory}",
    ]
    assert hub.repositories == []


@pytest.mark.parametrize("name", ["name", "a/b/c", "owner/", "-x/..", "owner/na me", ""])
def test_names_that_the_hub_does_not_take(directory: Path, hub: type[Hub], name: str) -> None:
    (fault,) = faults(invoke("push", directory, "--", name))
    assert fault == f"{name}: no name of a repository: write it as owner/name"


def test_a_card_that_is_none_and_a_hub_that_refuses(
    directory: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise huggingface_hub.errors.HfHubHTTPError("403 Forbidden\nand more", response=None)

    monkeypatch.setattr(Hub, "create_repo", refuses)
    (fault,) = [line for line in invoke("push", directory, "someone/x").stderr.splitlines() if line]
    assert fault.startswith("error: someone/x: not uploaded (HfHubHTTPError: 403 Forbidden): check")
    (directory / "README.md").write_text("---\n- a list\n---\n")
    (fault,) = faults(invoke("push", directory, "someone/x"))
    assert fault.startswith(f"{directory}/README.md: metadata that the Hub cannot read: ")

"""`hibprune check`: every fault that can be found without running, and no network unasked."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import invoke
from standin import STAND_INS, StandIn


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", STAND_INS)
def test_check_passes_a_good_recipe(stand_ins: Callable[[str], Path], name: str) -> None:
    recipe = stand_ins(name) / "recipe.yaml"
    result = invoke("check", recipe)
    assert (result.exit_code, result.output) == (0, f"{recipe}: ok\n")


@pytest.mark.usefixtures("no_network")
def test_check_offline_says_what_it_could_not_check(stand_in: StandIn) -> None:
    result = invoke(
        "check", stand_in.recipe, "--offline",
        "--set", "model.source=superb/wav2vec2-base-superb-ks",
        "--set", "calibration.source={kind: speechcommands, root: nowhere, subset: training}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "not checked: model superb/wav2vec2-base-superb-ks: on the Hub",
        "not checked: calibration: its data are not on this machine",
        f"{stand_in.recipe}: ok",
    ]


def test_check_asks_the_hub_unless_offline(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    asked: list[str] = []

    def unreachable(self: HfApi, repo_id: str, **options: Any) -> None:
        asked.append(repo_id)
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    result = invoke("check", stand_in.recipe, "--set", "model.source=owner/name")
    assert (result.exit_code, asked) == (2, ["owner/name"])
    assert result.stderr == (
        "error: owner/name: not found on the Hub (ConnectionError): check the name and the "
        "network, or pass --offline\n"
    )


def test_a_run_that_misses_the_hub_names_no_option_it_does_not_have(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def unreachable(repo_id: str, **options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    result = invoke("run", stand_in.recipe, "--set", "model.source=owner/name")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: owner/name: not a directory here and not to be had from the Hub "
        "(ConnectionError): check the name, the revision and the network\n"
    )


def spoil_nothing_there(stand_in: StandIn) -> list[str]:
    content = stand_in.content()
    content["model"]["source"] = "gone"
    content["calibration"]["source"]["path"] = "gone.jsonl"
    content["validation"]["source"] = {"kind": "folder", "path": "gone"}
    stand_in.write(content)
    root = stand_in.root
    return [
        f"{stand_in.recipe}: model.source: gone: no such directory, and not a Hub id (owner/name)",
        f"{stand_in.recipe}: calibration.source: {root}/gone.jsonl: no such manifest",
        f"{stand_in.recipe}: validation.source: {root}/gone: no such directory",
    ]


def spoil_audio(stand_in: StandIn) -> list[str]:
    for number in (3, 4):
        stand_in.clip("validation", number).unlink()
    return [
        f"{stand_in.recipe}: validation.source: 2 audio files are missing, "
        "the first validation/3.wav"
    ]


def spoil_overlap(stand_in: StandIn) -> list[str]:
    shutil.copy(stand_in.clip("calibration", 0), stand_in.clip("validation", 1))
    return [
        "calibration and validation share 1 clip: calibration/0.wav = validation/1.wav; "
        "validate on clips that the heads were not chosen on"
    ]


def spoil_samples(stand_in: StandIn) -> list[str]:
    content = stand_in.content()
    content["calibration"]["samples"] = 200
    stand_in.write(content)
    return [f"{stand_in.recipe}: calibration.samples: 200 asked for, but there are 20 clips"]


@pytest.mark.parametrize("spoil", [spoil_nothing_there, spoil_audio, spoil_overlap, spoil_samples])
def test_check_reports_faults(stand_in: StandIn, spoil: Callable[[StandIn], list[str]]) -> None:
    faults = spoil(stand_in)
    result = invoke("check", stand_in.recipe)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"error: {fault}" for fault in faults]
    assert result.stdout == ""

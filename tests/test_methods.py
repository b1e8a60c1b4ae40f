"""What every attribution method keeps to, held over the table of methods and that of families."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from standin import StandIn
from test_attention import traces
from test_hib import LENGTHS, samples_of, task_loss, tiny
from tiny_models import MASKED, TINY_MODELS, TinyModel
from torch import Tensor
from torch.nn import functional
from torch.overrides import _len_torch_function_stack
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

import hibprune.attribution.fitting
from hibprune.attribution import METHODS, Method, MethodBase
from hibprune.attribution.interface import AnyStackMethod
from hibprune.attribution.session import Sample, Session
from hibprune.errors import UserError
from hibprune.models.attention import attention_sites, heads_of, silenced
from hibprune.recipe import load_recipe
from hibprune.records.units import Head, Scores
from hibprune.stages.load import load
from hibprune.tasks import Batch


@dataclass(frozen=True)
class Case:
    """How a method is run here, and what it can know of a head by its definition."""

    sees: Literal["outputs", "attention", "weights", "nothing"] = "outputs"
    """`attention` weights are blind to what becomes of a head's output; `weights` are the model's
    parameters, of which those that write the output are some."""
    fields: dict[str, Any] = field(default_factory=dict)
    """For speed."""
    planted: dict[str, Any] = field(default_factory=dict)
    """For the model with useless heads."""
    per_sample: bool = True
    """False: learned from all samples together, so that no sample has scores of its own."""

    @property
    def runs_the_model(self) -> bool:
        return self.sees in ("outputs", "attention")


CASES = {
    # The paper's own score compares attention with attention; the information kept is what can
    # tell that a head's output goes nowhere.
    "hib": Case(
        fields={"steps": 4},
        planted={
            "bottleneck": "mutual-information",
            "score": "information",
            "beta": 0.01,
            "steps": 60,
        },
    ),
    "head-iba": Case(fields={"steps": 4}, planted={"beta": 0.001, "steps": 40}),
    "gates": Case(fields={"steps": 4}, planted={"steps": 60, "penalty": 0.05}, per_sample=False),
    "attattr": Case(fields={"steps": 3}, planted={"steps": 20}),
    "occlusion": Case(),
    "taylor": Case(),
    "lrp": Case(),
    "attention": Case("attention"),
    "confidence": Case("attention"),
    "magnitude": Case("weights"),
    "random": Case("nothing"),
    # What a layer writes can be made up for by its other heads.
    "reconstruction": Case(per_sample=False),
}
BY_NAME = {method.name(): method for method in METHODS}
every_method = pytest.mark.parametrize("name", BY_NAME)
running = [name for name in BY_NAME if name not in CASES or CASES[name].runs_the_model]
per_sample = [name for name in running if name not in CASES or CASES[name].per_sample]
every_per_sample_method = pytest.mark.parametrize("name", per_sample)

UNLIKE = ("wav2vec2", "wavlm", "whisper")
"""Families whose attention or inputs are of a kind of their own."""
PARTLY = ("conformer-rotary", "moonshine", "bert")
"""So are these; what they have of their own is read in one place for all methods."""


def on_every_model(names: list[str]) -> pytest.MarkDecorator:
    """Methods on families: all on the unlike ones, every other one on those partly so, one on each
    of the rest, which are much like one; what remains is slow."""
    alike = [row for row in TINY_MODELS if row.name not in (*UNLIKE, *PARTLY)]
    cases = []
    for row in TINY_MODELS:
        chosen = [names[alike.index(row) % len(names)]] if row in alike else []
        if row.name in PARTLY:
            chosen = names[PARTLY.index(row.name) % 2 :: 2]
        for name in names:
            quick = row.name in UNLIKE or name in chosen
            marks = () if quick else (pytest.mark.slow,)
            cases.append(pytest.param(row, name, id=f"{row.name}-{name}", marks=marks))
    return pytest.mark.parametrize(("row", "name"), cases)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares measuring the memory of a step, which changes no scores: test_memory sees to both."""
    monkeypatch.setattr(hibprune.attribution.fitting, "peak_bytes", lambda *_: 1)


def method(name: str, task: str = "keyword-spotting", **more: Any) -> MethodBase:
    fields = {"method": name, **CASES[name].fields, **more}
    chosen: MethodBase = TypeAdapter(Method).validate_python(fields)
    return chosen.for_task(task)


def test_every_method_has_its_case() -> None:
    assert set(CASES) == set(BY_NAME)
    assert len(BY_NAME) == len(METHODS)


@dataclass
class Passes:
    """Counts passes through the last attention layer of the encoder, and can stop one."""

    number: int = 0
    stop_at: int = 0
    error: type[BaseException] = KeyboardInterrupt


@contextmanager
def passes_counted(model: PreTrainedModel) -> Any:
    counted = Passes()

    def count(*_: object) -> None:
        counted.number += 1
        if counted.number == counted.stop_at:
            raise counted.error

    handle = attention_sites(model)[-1].output.register_forward_pre_hook(count)
    yield counted
    handle.remove()


def everything(model: PreTrainedModel) -> dict[str, Any]:
    """All that a method could leave changed, weights aside."""
    return {
        **traces(model),
        "gradients": [weight.grad for weight in model.parameters()],
        "torch": (torch.is_grad_enabled(), _len_torch_function_stack()),
    }


class TestContract:
    @on_every_model(per_sample)
    @pytest.mark.usefixtures("unmeasured")
    def test_padded_batches_give_what_each_sample_gives_alone(
        self, row: TinyModel, name: str
    ) -> None:
        model, samples = row.build(), samples_of(row, LENGTHS)
        saved: list[int] = []
        session = Session(save=lambda rows: saved.append(len(rows)))
        scores = method(name).attribute(model, samples, task_loss, session)
        assert scores.method == name
        assert scores.heads == heads_of(model)
        assert scores.samples == tuple(sample.id for sample in samples)
        assert np.isfinite(scores.per_sample).all()
        assert np.ptp(scores.per_sample, axis=1).min() > 0  # heads are told apart
        if row in MASKED and not row.equal_lengths:
            assert saved == [len(samples)]
        for sample, got in zip(samples, scores.per_sample, strict=True):
            alone = method(name).attribute(model, [sample], task_loss, Session())
            (expected,) = alone.per_sample
            assert np.allclose(got, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())

    @on_every_model(list(BY_NAME))
    def test_the_model_is_left_as_it_was_found(self, row: TinyModel, name: str) -> None:
        """Also when an error or Ctrl-C ends a pass at the start, in the middle or at the end."""
        model, samples = row.build(), samples_of(row, LENGTHS[:2])
        model.train()
        attention_sites(model)[1].module.eval()
        next(model.parameters()).requires_grad_(False)
        with passes_counted(model) as passes:
            before = everything(model)
            weights = {key: value.clone() for key, value in model.state_dict().items()}
            endings: list[tuple[int, type[BaseException]]] = [(0, KeyboardInterrupt)]
            while endings:
                passes.number, (passes.stop_at, passes.error) = 0, endings.pop()
                try:
                    method(name).attribute(model, samples, task_loss, Session())
                except (ValueError, KeyboardInterrupt) as error:
                    assert type(error) is passes.error  # noqa: PT017
                    assert passes.number == passes.stop_at
                else:
                    assert passes.stop_at == 0
                    last = passes.number
                    assert (last > 0) == CASES[name].runs_the_model
                    if last:
                        endings = [
                            (1, KeyboardInterrupt),
                            (last // 2 + 1, KeyboardInterrupt),
                            (last, ValueError),
                        ]
                assert everything(model) == before
                state = model.state_dict()
                assert all(torch.equal(state[key], value) for key, value in weights.items())

    @every_per_sample_method
    @pytest.mark.parametrize("model_name", ["wav2vec2", "whisper", "bert"])
    @pytest.mark.usefixtures("unmeasured")
    def test_taken_up_again_it_gives_the_same_scores(self, model_name: str, name: str) -> None:
        row = tiny(model_name)
        model, samples = row.build(), samples_of(row, (0.08, 0.1, 0.09, 0.08))
        saved: list[dict[str, Any]] = []
        small = method(name, batch_size=1)
        whole = small.attribute(
            model, samples, task_loss, Session(save=lambda rows: saved.append(dict(rows)))
        )
        assert [len(rows) for rows in saved] == [1, 2, 3, 4]
        with passes_counted(model) as passes:
            assert small.attribute(model, samples, task_loss, Session(done=saved[-1])) == whole
            assert passes.number == 0
        seen: list[str] = []

        def watched(model: PreTrainedModel, batch: Batch) -> Tensor:
            seen.extend(batch.ids)
            return task_loss(model, batch)

        again = small.attribute(model, samples, watched, Session(done=saved[1]))
        assert again.samples == whole.samples
        assert np.allclose(again.per_sample, whole.per_sample, rtol=1e-5, atol=1e-7)
        assert not set(seen) & set(saved[1])

    @every_method
    def test_the_same_seed_gives_the_same_scores(self, name: str) -> None:
        row = tiny("wavlm")
        first, second = (
            method(name).attribute(row.build(), samples_of(row), task_loss, Session(seed=3))
            for _ in range(2)
        )
        assert first == second

    @every_method
    @pytest.mark.usefixtures("unmeasured")
    def test_heads_removed_before_are_neither_scored_nor_missed(self, name: str) -> None:
        for model_name in ("wavlm", "conformer-relative", "moonshine"):
            row = tiny(model_name)
            model = row.build()
            model.prune_heads({0: [1, 3], 1: [0, 1, 2, 3]})
            scores = method(name).attribute(model, samples_of(row), task_loss, Session())
            assert scores.heads == (Head(0, 0), Head(0, 2))
            assert np.isfinite(scores.per_sample).all()


@pytest.fixture(scope="module")
def tasks(stand_ins: Callable[[str], Path]) -> Callable[[str], Any]:
    """Model, samples and task of a stand-in by name."""

    def build(name: str) -> tuple[PreTrainedModel, list[Sample], Any]:
        loaded = load_recipe(StandIn(stand_ins(name)).recipe)
        material = load(loaded, torch.device("cpu"))
        checkpoint, recipe = material.checkpoint, loaded.recipe
        samples = []
        for clip in material.calibration.utterances[:4]:
            waveform = checkpoint.read(clip.content, recipe.calibration.durations)
            assert clip.target is not None
            target = recipe.task.encode(clip.target, checkpoint.vocabulary)
            samples.append(Sample(clip.id, checkpoint.inputs(waveform), target))
        return checkpoint.model, samples, recipe.task

    return build


@pytest.mark.parametrize(
    "task_name", ["keyword_spotting", "intents", "speech_recognition", "encoder_decoder"]
)
def test_every_task_is_served(task_name: str, tasks: Callable[[str], Any]) -> None:
    model, samples, task = tasks(task_name)
    for name in BY_NAME:
        scores = method(name, task.kind).attribute(model, samples, task.loss, Session())
        assert np.isfinite(scores.per_sample).all(), name
        assert len(set(scores.values.values())) == len(heads_of(model)), name


NEEDED = (Head(0, 2), Head(1, 3))
"""The planted model does its task by these two heads alone, and by neither alone."""
MARKS, WORDS, LENGTH = 4, range(10, 40), 12


@pytest.fixture(scope="module")
def planted() -> tuple[PreTrainedModel, list[Sample]]:
    """Says which of four marks stands somewhere behind the first token, which it alone reads from.

    Of its eight heads two were there in training; the others' output projections are zero.
    """
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=37,
            max_position_embeddings=LENGTH,
            num_labels=MARKS,
            initializer_range=0.2,
        )
    ).eval()
    useless = [head for head in heads_of(model) if head not in NEEDED]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    with silenced(model, useless):
        for _ in range(60):
            tokens, marks = sentences(64, generator)
            optimiser.zero_grad()
            functional.cross_entropy(model(tokens).logits, marks).backward()
            optimiser.step()
    model.zero_grad()
    zero_output(model, useless)
    tokens, marks = sentences(12, generator)
    samples = [
        Sample(
            f"sentence{place}",
            {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])},
            (int(mark),),
        )
        for place, (row, mark) in enumerate(zip(tokens, marks, strict=True))
    ]
    return model, samples


def sentences(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(WORDS.start, WORDS.stop, (number, LENGTH), generator=generator)
    marks = torch.randint(MARKS, (number,), generator=generator)
    places = torch.randint(1, LENGTH, (number,), generator=generator)
    tokens[:, 0] = 2
    tokens[torch.arange(number), places] = 3 + marks
    return tokens, marks


def zero_output(model: PreTrainedModel, heads: list[Head]) -> None:
    sites = attention_sites(model)
    with torch.no_grad():
        for head in heads:
            size = sites[head.layer].head_size
            weight = sites[head.layer].output.get_parameter("weight")
            weight[:, head.index * size : (head.index + 1) * size] = 0


def accuracy(model: PreTrainedModel) -> float:
    tokens, marks = sentences(200, torch.Generator().manual_seed(5))
    with torch.no_grad():
        return float((model(tokens).logits.argmax(-1) == marks).float().mean())


class TestPlantedHeads:
    def test_the_model_is_as_planted(self, planted: tuple[PreTrainedModel, list[Sample]]) -> None:
        model, _ = planted
        assert accuracy(model) > 0.95
        for head in NEEDED:
            with silenced(model, [head]):
                assert accuracy(model) < 0.85

    @pytest.mark.parametrize(
        "name", [name for name, case in CASES.items() if case.sees in ("outputs", "weights")]
    )
    def test_useless_heads_rank_last(
        self, planted: tuple[PreTrainedModel, list[Sample]], name: str
    ) -> None:
        values = scored(planted, name).values
        useless = [value for head, value in values.items() if head not in NEEDED]
        assert max(useless) < min(values[head] for head in NEEDED)

    @pytest.mark.parametrize(
        "name", [name for name, case in CASES.items() if case.sees in ("attention", "nothing")]
    )
    def test_some_cannot_see_where_an_output_goes(
        self, planted: tuple[PreTrainedModel, list[Sample]], name: str
    ) -> None:
        """Even a needed head, made useless, keeps its score to the last bit."""
        model, samples = planted
        spoilt = copy.deepcopy(model)
        zero_output(spoilt, [NEEDED[-1]])
        assert accuracy(spoilt) < 0.85
        assert scored((spoilt, samples), name) == scored(planted, name)


def scored(planted: tuple[PreTrainedModel, list[Sample]], name: str) -> Scores:
    model, samples = planted
    chosen = method(name, **CASES[name].planted)
    return chosen.attribute(model, samples, task_loss, Session())


def test_a_stack_that_the_model_has_not_is_a_plain_error() -> None:
    row = tiny("hubert")
    model, samples = row.build(), samples_of(row)
    with_stacks = [name for name in BY_NAME if issubclass(BY_NAME[name], AnyStackMethod)]
    assert {"occlusion", "taylor", "lrp"} <= set(with_stacks)
    for name in with_stacks:
        chosen = method(name, stacks=("decoder.cross",))
        with pytest.raises(UserError) as error:
            chosen.attribute(model, samples, task_loss, Session())
        assert str(error.value) == (
            "model type 'hubert' has no attention heads 'decoder.cross': use encoder"
        )
    for name in set(BY_NAME) - set(with_stacks):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            method(name, stacks=("decoder.cross",))


@pytest.mark.parametrize("model_name", ["whisper", "moonshine"])
def test_decoders_heads_are_scored_by_methods_with_stacks(model_name: str) -> None:
    row = tiny(model_name)
    model, samples = row.build(), samples_of(row)
    stacks = ("decoder.cross", "encoder", "decoder.self")
    useless = {Head(1, 2, stack) for stack in stacks}
    for stack in stacks:
        site = attention_sites(model, [stack])[1]
        with torch.no_grad():
            site.output.weight[:, 2 * site.head_size : 3 * site.head_size] = 0
    for name, chosen in BY_NAME.items():
        if issubclass(chosen, AnyStackMethod):
            scores = method(name, stacks=stacks).attribute(model, samples, task_loss, Session())
            assert scores.heads == heads_of(model, stacks)
            if name == "gates":
                # No slope of the loss reaches the useless: all their gates follow the price alone.
                assert len({round(scores.values[head], 9) for head in useless}) == 1
                assert len(set(scores.values.values())) > 3
                continue
            assert {head for head, value in scores.values.items() if abs(value) < 1e-7} == useless


def test_resources_change_no_scores_and_are_fields() -> None:
    for chosen in METHODS:
        assert chosen.resources <= set(chosen.model_fields)
        assert {"batch_size", "memory_gib"} & set(chosen.model_fields) == set(chosen.resources)

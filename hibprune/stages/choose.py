"""Which units go: heads round by round and others beside them, or a mix by one number for all."""

from __future__ import annotations

from dataclasses import replace

from hibprune.compression.plan import Round
from hibprune.models.attention import heads_of
from hibprune.stages.mix import choose_mix
from hibprune.stages.recover import recovered_between
from hibprune.stages.rounds import Choice, FinishedRound
from hibprune.stages.run import Run
from hibprune.stages.score import attribute, calibration_targets, plan
from hibprune.stages.score_others import choose_others


def choose(run: Run) -> Choice:
    """Score and plan; heads are scored again, round by round, as the plans have left them."""
    recipe, targets = run.recipe, calibration_targets(run)
    if recipe.budget.one_number is not None:
        choice = choose_mix(run, targets)
    else:
        rounds = recipe.schedule.rounds_for(recipe.budget, heads_of(run.checkpoint.model))
        choice = Choice(())
        for number in range(1, rounds + 1):
            part = Round(number, rounds, choice.removed)
            method = recipe.method_of("head")
            scores = attribute(run, targets, part, method=method, start=choice.recovered)
            planned = plan(run, scores, part)
            finished, start = FinishedRound(scores, planned), choice.recovered
            if number < rounds and recipe.recover is not None:
                gone = (*choice.removed, *planned.result.removed)
                done, start = recovered_between(run, number, gone, choice.recovered)
                finished = replace(finished, recovered=done)
            choice = replace(choice, rounds=(*choice.rounds, finished), recovered=start)
        choice = replace(choice, others=choose_others(run, targets))
    run.processes.tell(None)
    return choice

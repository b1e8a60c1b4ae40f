"""The whole battery: `pytest -m slow tests/hostile` runs it and prints what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cases_checkpoints
import cases_data
import cases_directories
import cases_recipes
import pytest
from battery import Case, Verdict, copy_of, judge

CASES: tuple[Case, ...] = (
    *cases_recipes.CASES,
    *cases_checkpoints.CASES,
    *cases_data.CASES,
    *cases_directories.CASES,
)


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(CASES) >= 300
    again = [name for name, times in Counter(case.name for case in CASES).items() if times > 1]
    assert not again


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_bad_input_is_refused_or_taken_and_never_breaks_anything(
    stand_ins: Callable[[str], Path], finished: Callable[[str], Path], tmp_path: Path
) -> None:
    wrong: list[tuple[Case, Verdict]] = []
    codes: Counter[str] = Counter()
    for number, case in enumerate(CASES):
        root = copy_of(stand_ins(case.stand_in), tmp_path / f"{number:03}")
        if case.finished and not case.name.startswith("run: "):
            copy_of(finished(case.stand_in), root / "out")
        verdict = judge(case, root)
        if (root / "ran").exists():
            verdict = Verdict(
                verdict.code, verdict.said, (*verdict.faults, "a stranger's code ran")
            )
        codes["hangs" if verdict.code is None else str(verdict.code)] += 1
        if verdict.faults:
            wrong.append((case, verdict))
            print(f"WRONG {case.name}: {'; '.join(verdict.faults)}\n{verdict.said[-800:]}")
    counts = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    print(f"{len(CASES)} cases; exit codes {counts}; {len(wrong)} wrong")
    assert not wrong, [case.name for case, _ in wrong]

"""The whole battery: `pytest -m slow tests/hostile -s` runs it and prints what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cases_checkpoints
import cases_data
import cases_directories
import cases_recipes
import cases_variants
import pytest
from battery import Case, Verdict, copy_of, judge
from commands import invoke

PARTS: dict[str, list[Case]] = {
    "recipes": cases_recipes.CASES,
    "checkpoints": cases_checkpoints.CASES,
    "data": cases_data.CASES,
    "directories": cases_directories.CASES,
    "variants": cases_variants.CASES,
}
CASES = [case for cases in PARTS.values() for case in cases]


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(CASES) >= 300
    again = [name for name, times in Counter(case.name for case in CASES).items() if times > 1]
    assert not again


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({case.stand_in for case in CASES}))
def test_what_is_spoiled_is_sound_before(stand_ins: Callable[[str], Path], name: str) -> None:
    """A refusal says something of the fault alone only where there is no other."""
    result = invoke("check", stand_ins(name) / "recipe.yaml", "--offline")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("part", PARTS)
def test_bad_input_is_refused_or_taken_and_never_breaks_anything(
    stand_ins: Callable[[str], Path],
    finished: Callable[[str], Path],
    finished_in_int8: Callable[[str], Path],
    tmp_path: Path,
    part: str,
) -> None:
    wrong: list[tuple[Case, Verdict]] = []
    codes: Counter[str] = Counter()
    answers = tmp_path.parent / f"{part}-answers.txt"
    for number, case in enumerate(PARTS[part]):
        root = copy_of(stand_ins(case.stand_in), tmp_path / f"{number:03}")
        if case.finished:
            made = finished_in_int8 if case.finished == "int8" else finished
            copy_of(made(case.stand_in), root / "out")
        verdict = judge(case, root)
        if (root / "ran").exists():
            verdict = Verdict(
                verdict.code, verdict.said, (*verdict.faults, "a stranger's code ran")
            )
        codes["hangs" if verdict.code is None else str(verdict.code)] += 1
        with answers.open("a") as file:
            file.write(f"{case.name[:90]} | {verdict.code} | {verdict.said[:300]!r}\n")
        if verdict.faults:
            wrong.append((case, verdict))
            print(f"WRONG {case.name}: {'; '.join(verdict.faults)}\n{verdict.said[-800:]}")
    counts = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    print(f"{part}: {len(PARTS[part])} cases; exit codes {counts}; {len(wrong)} wrong; {answers}")
    assert not wrong, [case.name for case, _ in wrong]

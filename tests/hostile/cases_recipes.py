"""Recipes that are broken, contradictory, enormous, or meant to do harm."""

from __future__ import annotations

from battery import Case
from spoiling import both, code, content, no_file, recipe, recipe_text

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{last}'] * 9)}]\n"
    for last, this in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = "[" * 20_000
LONG = "x" * 2**20

VALUES = {
    "budget__fraction": (0, 1, -0.5, "half", None, [], {}, "nan", float("inf"), 10**400, True),
    "budget__scope": ("everywhere", 3, None, ["global"]),
    "budget__min_heads_per_layer": (-1, 99, "two", 2.5),
    "calibration__samples": (0, -3, 1.5, "all", 10**12, None),
    "calibration__labels": ("none", 7),
    "calibration__crop_seconds": (0, -1, "x"),
    "calibration__max_unreadable": (-0.1, 1, "x"),
    "calibration__min_seconds": (0, 50, "x"),
    "validation__limit": (0, -1, "x", 2.5),
    "validation__source": ("clips", [], None, {"kind": "ftp"}, {"path": "x"}),
    "attribution__method": ("hibb", None, 3, ["hib"], LONG),
    "attribution__steps": (0, -1, "auot", 2.5, [1]),
    "attribution__beta": (-1, "x", float("nan")),
    "schedule__rounds": (0, -1, "x", 1.5),
    "removal__leave": ("half", 3),
    "removal__repair": ("nope", 3, None, ["mean"], ""),
    "removal__memory_gib": (0, -1, "x", None, float("nan"), float("inf"), [], 10**400),
    "removal__refine": ({}, {"steps": 0}, {"steps": 10**9}, {"steps": 1.5}, "x", 3, {"step": 3}),
    "budget__neurons": (float("nan"), -0.1, 1, 1.5, "x", float("inf"), None, [], True),
    "neuron_attribution__method": ("nope", "hib", None, 3),
    "neuron_attribution__memory_gib": (0, -1, "x", float("inf")),
    "quantize__max_drop": (-1, "x", float("nan"), float("inf"), None),
    "quantize__full_range": ("maybe", 3, None),
    "export__variants": ([], ["int4"], "int8", [3], [None], {"int8": 1}),
    "calibration__repair_samples": (0, -1, "x", 2.5, 10**12, 21),
    "gates__variant": ("nope", "pruned-int8", "pruned-fp16", "original", None, 3),
    "gates__strict": ("maybe", 3, None),
    "benchmark__rivals": ("maybe", 3, None),
    "export__opset": (3, 99, "x", None),
    "export__tolerance": (0, -1, "x"),
    "export__seconds": ([], [-1], ["x"], [1e9], "1"),
    "benchmark__seconds": ([], [0], [-1], [1e7], ["x"]),
    "benchmark__repetitions": (0, 1, "x"),
    "benchmark__threads": (0, -1, "x"),
    "gates__max_accuracy_drop": (-1, 2, "x"),
    "gates__min_speedup": (0, -1, "x"),
    "seed": (-1, "x", 1.5, None),
    "device": ("tpu", 3),
    "name": ("", "../up", "a/b", ".hidden", "x" * 200, "$\\frac{$", "a\nb", "\u202egnp"),
    "model__source": (
        "",
        "nowhere",
        "a\nerror: b",
        "../../../../etc",
        "/etc/passwd",
        "a/b/c",
        3,
        None,
        LONG,
    ),
    "model__revision": (3, ["main"]),
    "task__kind": ("singing", None, 3, LONG),
    "surprise": (1, None),
}

SPELLING = ("modle", "calibraton", "atribution", "budgets", "gate", "exports")


def _named(key: str, value: object) -> tuple[str, ...]:
    """What a refusal of a value must speak of: its key, or the section that it contradicts."""
    if value == LONG:
        return ("larger than 1 MB",)
    if isinstance(value, int) and value > 10**100:
        return ("a number of 401 characters",)
    section = key.rpartition("__")[0] or key
    return (f"{key.replace('__', '.')}: ", f"{key.replace('__', '.')}.", f"{section}: ")


def _bad_values() -> list[Case]:
    return [
        Case(
            f"recipe: {key} = {str(value)[:30]!r}",
            recipe(**{key: value}),
            says=_named(key, value),
        )
        for key, values in VALUES.items()
        for value in values
    ]


CASES: list[Case] = [
    *_bad_values(),
    *[Case(f"recipe: misspelt {key}", recipe(**{key: {}}), says=(f"{key}: ",)) for key in SPELLING],
    Case("recipe: empty", content("recipe.yaml", "")),
    Case("recipe: a list", content("recipe.yaml", "- a\n- b\n")),
    Case("recipe: a number", content("recipe.yaml", "3\n")),
    Case("recipe: not YAML", content("recipe.yaml", "a: [1, 2\nb: }")),
    Case("recipe: tabs", content("recipe.yaml", "name:\tx\n\tmodel: y\n")),
    Case("recipe: not UTF-8", content("recipe.yaml", b"name: \xff\xfe\n")),
    Case("recipe: UTF-16", content("recipe.yaml", "name: x\n".encode("utf-16"))),
    Case("recipe: zero bytes", content("recipe.yaml", b"\0" * 1000)),
    Case("recipe: control characters", content("recipe.yaml", "name: \x1b[2J\x07\n")),
    Case("recipe: a megabyte on a line", content("recipe.yaml", "name: " + LONG)),
    Case("recipe: 100 megabytes", content("recipe.yaml", "#" * 10**8)),
    Case("recipe: nested deeply", content("recipe.yaml", "a: " + DEEP)),
    Case("recipe: a bomb of aliases", content("recipe.yaml", BOMB)),
    Case(
        "recipe: a bomb at attribution.steps",
        content("recipe.yaml", BOMB + "attribution: {method: hib, steps: *i}\n"),
    ),
    Case(
        "recipe: a bomb at attribution.method",
        content("recipe.yaml", BOMB + "attribution: {method: *i}\n"),
    ),
    Case("recipe: a bomb at task.kind", content("recipe.yaml", BOMB + "task: {kind: *i}\n")),
    Case("recipe: an endless alias", content("recipe.yaml", "a: &a [*a]\ntask: {kind: *a}\n")),
    Case(
        "recipe: Python in it", content("recipe.yaml", "a: !!python/object/apply:os.system [id]\n")
    ),
    Case("recipe: a key twice", recipe_text("\nbudget: {}\n"), says=("given twice",)),
    Case("recipe: a list as a key", recipe_text("\n? [a, b]\n: c\n")),
    Case("recipe: the 99th of a month", recipe_text("\nsurprise: 2020-13-99\n")),
    Case("recipe: 5000 digits", recipe_text("\nseed: " + "9" * 5000 + "\n")),
    Case(
        "recipe: 5000 digits for rounds",
        recipe_text("\nschedule: {rounds: " + "9" * 5000 + "}\n"),
        says=("a number of 5,000 characters",),
    ),
    *[
        Case(f"recipe: {kind} in its place", no_file("recipe.yaml", kind))
        for kind in ("pipe", "zeros", "directory", "loop", "nowhere")
    ],
    Case(
        "recipe: a link to /etc/passwd",
        both(lambda s: s.recipe.unlink(), lambda s: s.recipe.symlink_to("/etc/passwd")),
    ),
    Case(
        "recipe: trust_remote_code",
        recipe(model__trust_remote_code=True),
        says=("model.trust_remote_code: ",),
    ),
    Case("recipe: code beside it", both(code("recipe.py"), recipe(surprise=1)), says=("surprise",)),
    *[
        Case(
            f"--set {override[:30]}",
            lambda s: None,
            command=("run", "{root}/recipe.yaml", "--output", "{root}/out", "--set", override),
            says=("a: unknown key",) if override == "a.b=" else (),
        )
        for override in (
            "x",
            "=",
            "a.b=",
            "budget.fraction",
            "budget.fraction=[",
            "name=a/b",
            "budget.fraction.deep=1",
            ".=1",
            "seed=" + "9" * 5000,
            f"name={LONG[:5000]}",
            "attribution.steps=!!python/name:os.system",
            "task.kind=\x1b[31m",
        )
    ],
    *[
        Case(
            f"{command}: of a recipe that is a {kind}",
            no_file("recipe.yaml", kind),
            command=(command, "{root}/recipe.yaml"),
        )
        for command in ("check", "compare")
        for kind in ("pipe", "zeros")
    ],
    *[
        Case(
            f"compare: {' '.join(options)[:40]}",
            lambda s: None,
            command=("compare", "{root}/recipe.yaml", "--output", "{root}/out", *options),
            says=(f"error: {options[0]}",),
        )
        for options in (
            ("--methods", "nope"),
            ("--methods", ""),
            ("--methods", "hib:x=1"),
            ("--methods", "hib:steps=-1"),
            ("--fractions", "2"),
            ("--fractions", "x"),
            ("--fractions", ""),
            ("--scope", "nope"),
            ("--seeds", "0"),
            ("--metric", "nope"),
            ("--methods", "hib,hib"),
            ("--methods", "hib:steps"),
        )
    ],
]

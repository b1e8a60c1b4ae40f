"""Output directories that were tampered with, and what else commands read from them."""

from __future__ import annotations

import json
import shutil

from battery import Case
from spoiling import content, no_file, setting
from standin import StandIn

RUN = ("run", "{root}/recipe.yaml", "--output", "{root}/out", "--quiet")
PREDICT = ("predict", "{root}/out", "{root}/validation/0.wav")
CORRELATE = ("correlate", "{root}/out", "{root}/out", "--output", "{root}/exported_models/x")
STEPS = ("baseline", "attribute", "plan", "prune", "validate", "export", "exported", "benchmark")


def record(step: str, **values: object):
    """Change the result of a step's record, where the run has such a step."""

    def spoil(stand_in: StandIn) -> None:
        path = stand_in.root / f"out/steps/{step}.json"
        if not path.is_file():
            return
        kept = json.loads(path.read_text())
        kept["result"] = (
            {**kept["result"], **values} if isinstance(kept["result"], dict) else values
        )
        path.write_text(json.dumps(kept))

    return spoil


def anywhere(pattern: str, data: bytes | str):
    """Replace whatever files of the output match a pattern."""

    def spoil(stand_in: StandIn) -> None:
        for path in (stand_in.root / "out").glob(pattern):
            path.write_bytes(data.encode() if isinstance(data, str) else data)

    return spoil


def linked(file: str, target: str):
    """Put a link to something outside in the place of a file of the output."""

    def spoil(stand_in: StandIn) -> None:
        victim = stand_in.root / target
        if not victim.exists():
            victim.parent.mkdir(parents=True, exist_ok=True)
            victim.write_text("do not touch")
        path = stand_in.root / "out" / file
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(victim)

    return spoil


def linked_directory(name: str):
    """The same with a directory full of somebody's files."""

    def spoil(stand_in: StandIn) -> None:
        outside = stand_in.root / "somebody"
        outside.mkdir()
        (outside / "model.onnx").write_text("do not touch")
        path = stand_in.root / "out" / name
        shutil.rmtree(path, ignore_errors=True)
        path.symlink_to(outside, target_is_directory=True)

    return spoil


def graph(change):
    """Rewrite the exported graph."""

    def spoil(stand_in: StandIn) -> None:
        import onnx

        path = stand_in.root / "out/onnx/model.onnx"
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return spoil


def _renamed_output(model) -> None:
    model.graph.output[0].name = "elsewhere"
    for node in model.graph.node:
        node.output[:] = ["elsewhere" if name == "logits" else name for name in node.output]


def _renamed_input(model) -> None:
    model.graph.input[0].name = "sound"
    for node in model.graph.node:
        node.input[:] = ["sound" if name == "input_values" else name for name in node.input]


def _endless(model) -> None:
    import onnx
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    most = helper.make_tensor("most", TensorProto.INT64, [], [2**62])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [1])
    model.graph.initializer.extend([most, yes])
    for node in model.graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]
    model.graph.node.append(
        onnx.helper.make_node("Loop", ["most", "yes", "before"], ["logits"], body=body)
    )


def _external(model) -> None:
    from onnx import TensorProto

    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../../../etc/passwd"


def _custom(model) -> None:
    from onnx import helper

    model.graph.node.append(
        helper.make_node("Harm", [model.graph.input[0].name], ["z"], domain="nobody")
    )


GRAPHS = {
    "an output of another name": _renamed_output,
    "an input of another name": _renamed_input,
    "external data elsewhere": _external,
    "an operator nobody knows": _custom,
}

SCORES = {
    "ragged": {"per_sample": [[1.0], [1.0, 2.0]]},
    "NaN": {"per_sample": [[float("nan")] * 8]},
    "empty": {"per_sample": []},
    "of other heads": {"heads": [{"layer": 99, "index": 99}]},
    "text": {"per_sample": "x"},
}

CASES: list[Case] = [
    *[
        Case(
            f"rerun: {file} is a link",
            linked(file, f"outside-{number}"),
            command=RUN,
            finished=True,
            must_refuse=False,
        )
        for number, file in enumerate(
            (
                "run.log",
                "report.md",
                "README.md",
                "manifest.json",
                "config.json",
                "recipe.yaml",
                "model.safetensors",
                "onnx/model.onnx",
                "steps/plan.json",
                "steps/attribute.partial.json",
                "figures/heads.png",
            )
        )
    ],
    *[
        Case(
            f"rerun: {name}/ is a link",
            linked_directory(name),
            command=RUN,
            finished=True,
            must_refuse=False,
        )
        for name in ("onnx", "figures", "predictions", "steps")
    ],
    *[
        Case(
            f"rerun: {file} is a {kind}",
            no_file(f"out/{file}", kind),
            command=RUN,
            finished=True,
            must_refuse=False,
        )
        for file in (
            "run.log",
            "steps/plan.json",
            "steps/attribute.json",
            "report.md",
            "onnx/model.onnx",
        )
        for kind in ("pipe", "zeros", "directory", "loop", "nowhere")
    ],
    *[
        Case(
            f"rerun: steps/{step}.json is {what}",
            content(f"out/steps/{step}.json", data),
            command=RUN,
            finished=True,
            must_refuse=False,
        )
        for step in ("attribute", "plan")
        for what, data in (
            ("noise", bytes(range(256))),
            ("a list", "[]"),
            ("deep", "[" * 100_000),
            ("a long number", '{"key": ' + "9" * 5000 + "}"),
        )
    ],
    *[
        Case(
            f"rerun: scores that are {what}",
            record("attribute", **values),
            command=RUN,
            finished=True,
            must_refuse=False,
        )
        for what, values in SCORES.items()
    ],
    Case(
        "rerun: a plan that removes nothing",
        record("plan", removed=[]),
        command=RUN,
        finished=True,
        must_refuse=False,
    ),
    *[
        Case(
            f"correlate: scores that are {what}",
            record("attribute", **values),
            command=CORRELATE,
            finished=True,
        )
        for what, values in SCORES.items()
    ],
    *[
        Case(
            f"correlate: {what}",
            content("out/manifest.json", text),
            command=CORRELATE,
            finished=True,
        )
        for what, text in (
            ("manifest of noise", b"\xff\xfe"),
            ("manifest is a list", "[]"),
            ("no content", ""),
        )
    ],
    Case("correlate: a directory that is none", lambda s: None, command=CORRELATE),
    Case(
        "correlate: a manifest that is a pipe",
        no_file("out/manifest.json", "pipe"),
        command=CORRELATE,
        finished=True,
    ),
    *[
        Case(f"predict: a graph with {what}", graph(change), command=PREDICT, finished=True)
        for what, change in GRAPHS.items()
    ],
    Case(
        "predict: a graph without end",
        graph(_endless),
        command=(*PREDICT, "--timeout", "5"),
        finished=True,
    ),
    *[
        Case(
            f"predict: {file} is {what}",
            content(f"out/{file}", data),
            command=PREDICT,
            finished=True,
        )
        for file in ("onnx/model.onnx", "config.json", "preprocessor_config.json", "recipe.yaml")
        for what, data in (("noise", bytes(range(256)) * 4), ("empty", ""))
    ],
    *[
        Case(
            f"predict: {file} is a {kind}",
            no_file(f"out/{file}", kind),
            command=PREDICT,
            finished=True,
        )
        for file in ("onnx/model.onnx", "config.json", "recipe.yaml")
        for kind in ("pipe", "zeros", "nowhere")
    ],
    *[
        Case(
            f"predict: labels {labels}",
            setting("out/config.json", id2label=labels),
            command=PREDICT,
            finished=True,
            must_refuse=refuse,
        )
        for labels, refuse in (
            ({"0": "a"}, True),
            ({}, True),
            ({"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}, False),
            ({str(n): "\x1b[2J" for n in range(5)}, False),
            ([], True),
        )
    ],
    *[
        Case(
            f"predict: {what}", spoil, command=("predict", "{root}/out", *arguments), finished=True
        )
        for what, spoil, arguments in (
            ("a clip that is not there", lambda s: None, ("{root}/none.wav",)),
            ("a clip that is a directory", lambda s: None, ("{root}/validation",)),
            ("a clip that is a pipe", no_file("pipe.wav", "pipe"), ("{root}/pipe.wav",)),
            ("a clip of zeros without end", no_file("zero.wav", "zeros"), ("{root}/zero.wav",)),
            ("a clip that is text", content("x.wav", "x"), ("{root}/x.wav",)),
            ("a clip of the wrong name", lambda s: None, ("{root}/\udcff.wav",)),
        )
    ],
    Case("predict: a directory that is none", lambda s: None, command=PREDICT),
    Case(
        "run: an output that holds somebody's work",
        content("out/thesis.txt", "all of it"),
        command=RUN,
    ),
    Case("run: an output that is a file", content("out", "a file"), command=RUN),
    Case("run: an output that is a pipe", no_file("out", "pipe"), command=RUN),
    Case(
        "run: an output below a file",
        lambda s: None,
        command=("run", "{root}/recipe.yaml", "--output", "{root}/recipe.yaml/out"),
    ),
    Case(
        "run: an output that is a link",
        lambda s: ((s.root / "somebody").mkdir(), (s.root / "out").symlink_to(s.root / "somebody")),
        command=RUN,
        must_refuse=False,
    ),
    Case(
        "run: a recipe named for mathematics",
        lambda s: s.write({**s.content(), "name": "a_b^c"}),
        command=RUN,
    ),
]

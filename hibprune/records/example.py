"""An example beside an exported model: an input, its tensors, and what each variant gives out."""

from __future__ import annotations

from hibprune.records.base import Record

DIRECTORY = "example"


class ExampleOutput(Record):
    """What a variant gives out for the example: an array in `file`, and what that `says`."""

    file: str
    says: str | dict[str, str]


class Example(Record):
    """A made-up input that comes with a model, for whoever has to feed it elsewhere.

    `input` is a sound or text file, `tensors` maps what the graphs take to NumPy files, `outputs`
    each variant to what it gave out on the machine of the run: logits, or the tokens of a decoder.
    Paths start from the directory of the run.
    """

    input: str
    tensors: dict[str, str]
    outputs: dict[str, ExampleOutput]

    @property
    def files(self) -> list[str]:
        """All that lies in the directory of the example."""
        outputs = (output.file for output in self.outputs.values())
        return [self.input, *self.tensors.values(), *outputs]

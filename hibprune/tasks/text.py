"""One label per text: sentiment, topics, intents in writing."""

from __future__ import annotations

from typing import ClassVar, Literal

from hibprune.records.medium import TEXT, Medium
from hibprune.tasks.classification import Classification


class TextClassification(Classification):
    """Which class a text belongs to, by its tokens.

    A text that is longer than the model takes is left out and named, never cut short.
    """

    kind: Literal["text-classification"]

    medium: ClassVar[Medium] = TEXT
    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    export_task: ClassVar[str] = "text-classification"
    onnx_class: ClassVar[str] = "ORTModelForSequenceClassification"

"""The tasks, one file per kind; a new one is a file and its name in `Task`."""

from typing import Annotated

from pydantic import Field

from hibprune.tasks.base import TaskBase
from hibprune.tasks.classification import KeywordSpotting, SpeakerIdentification
from hibprune.tasks.ctc import SpeechRecognitionCTC
from hibprune.tasks.intent import IntentClassification
from hibprune.tasks.measures import Measure, OwnMetric, answer_text
from hibprune.tasks.seq2seq import SpeechRecognitionSeq2Seq
from hibprune.tasks.text import TextClassification
from hibprune.tasks.vocabulary import Batch, Encoded, Target, Vocabulary

Task = Annotated[
    KeywordSpotting
    | SpeakerIdentification
    | IntentClassification
    | SpeechRecognitionCTC
    | SpeechRecognitionSeq2Seq
    | TextClassification,
    Field(discriminator="kind"),
]

__all__ = [
    "Batch",
    "Encoded",
    "Measure",
    "OwnMetric",
    "Target",
    "Task",
    "TaskBase",
    "Vocabulary",
    "answer_text",
]

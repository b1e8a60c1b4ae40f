"""Lets ONNX Runtime compute in one thread where nobody says how many, as torch does in tests.

Its other threads have next to nothing to do in a graph this tiny, and spin while they wait for it:
they would take two thirds of the processor. Imported wherever tests have graphs run.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from onnxruntime import InferenceSession, SessionOptions


def _alone(start: Any) -> Any:
    @wraps(start)
    def started(
        session: Any, model: Any, sess_options: Any = None, *given: Any, **named: Any
    ) -> None:
        options = SessionOptions() if sess_options is None else sess_options
        if options.intra_op_num_threads == 0:
            options.intra_op_num_threads = 1
        start(session, model, options, *given, **named)

    return started


InferenceSession.__init__ = _alone(InferenceSession.__init__)

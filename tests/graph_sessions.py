"""Sessions of ONNX Runtime in tests: one thread each, and one session for files that are equal.

Where nobody says how many threads there are to be, others have next to nothing to do in a graph
this tiny, and wait for it. To open a graph takes longer than to run it on a dozen clips, and most
are the same, to the last bit, in many tests. Imported wherever tests have graphs run.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from functools import wraps
from pathlib import Path
from typing import Any

from onnxruntime import InferenceSession, SessionOptions

MOST = 64
"""Open sessions."""
_open: OrderedDict[tuple[object, ...], Any] = OrderedDict()


def _key(model: object, options: Any, providers: object) -> tuple[object, ...] | None:
    """What decides what a session does; None where that is more than a file and its options."""
    if not isinstance(model, str | Path) or not Path(model).is_file():
        return None
    content = Path(model).read_bytes()
    # Weights in another file, or something that is written beside.
    if b"location" in content or options.enable_profiling or options.optimized_model_filepath:
        return None
    return (
        hashlib.sha256(content).digest(),
        repr(providers),
        options.intra_op_num_threads,
        options.inter_op_num_threads,
        str(options.execution_mode),
        str(options.graph_optimization_level),
    )


def _opened_once(start: Any) -> Any:
    @wraps(start)
    def started(
        session: Any, model: Any, sess_options: Any = None, providers: Any = None, *given: Any,
        **named: Any,
    ) -> None:  # fmt: skip
        options = SessionOptions() if sess_options is None else sess_options
        if options.intra_op_num_threads == 0:
            options.intra_op_num_threads = 1
        key = None if given or named else _key(model, options, providers)
        if key not in _open:
            start(session, model, options, providers, *given, **named)
            if key is not None:
                _open[key] = dict(vars(session))
        else:
            vars(session).update(_open[key], _model_path=os.fspath(model))
            _open.move_to_end(key)
        while len(_open) > MOST:
            _open.popitem(last=False)

    return started


InferenceSession.__init__ = _opened_once(InferenceSession.__init__)

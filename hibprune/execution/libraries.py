"""Other libraries, before they are imported: are they there, are they quiet, do threads share."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings

from hibprune.errors import INSTALLED_AS, UserError

PACKAGES = (
    "accelerate", "datasets", "huggingface_hub", "jinja2", "jiwer", "markdown_it", "matplotlib",
    "numpy", "onnx", "onnxruntime", "optimum", "psutil", "pydantic", "rich", "scipy",
    "soundfile", "torch", "torchaudio", "transformers", "wrapt", "yaml",
)  # fmt: skip
"""What the package's dependencies are called when they are imported."""


def require_packages() -> None:
    """See that all that may be needed is installed, before hours of work.

    Raises:
        UserError: names the packages that are not.
    """
    missing = [
        INSTALLED_AS.get(name, name) for name in PACKAGES if importlib.util.find_spec(name) is None
    ]
    if missing:
        named = "', '".join(missing)
        one = "the package" if len(missing) == 1 else "the packages"
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"{one} '{named}' {are} not installed: pip install {' '.join(missing)}")


def share_the_processor() -> None:
    """Let torch's idle threads sleep instead of spinning; to be called before torch is imported.

    Spinning threads of runs that share their cores mostly wait for each other: two quickstarts at
    once crawl. A run that has the machine to itself is a little slower for it; set
    OMP_WAIT_POLICY=ACTIVE there.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def quiet_libraries() -> None:
    """Keep other libraries' progress bars, warnings and telemetry out of what a run says."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # It logs what it raises, too, in lines of its own.
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")
    # Variables are read on import, which may have been before.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # Advice that does not go through its logger, e.g. on where Whisper's settings are kept.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"transformers\.")

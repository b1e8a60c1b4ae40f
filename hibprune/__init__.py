"""hibprune makes speech transformers smaller by removing attention heads, and proves what it cost.

Importing it teaches Hugging Face's speech models `prune_heads`, so that pruned checkpoints load
through `from_pretrained`. Nothing heavy is imported: the classes are taught when they appear.
"""

import os

from wrapt import register_post_import_hook

from hibprune.models.families import FAMILIES

for _family in FAMILIES:
    register_post_import_hook(
        "hibprune.compression.head_pruning:teach_pruning", _family.modeling_module
    )

# onnxruntime makes an identifier of the machine, and events to send, as soon as it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

"""Whether the maps of a clip fit into memory: they grow with the square of its length."""

from __future__ import annotations

from transformers import PreTrainedModel

from hibprune.attribution.method import BatchedMethod, MethodBase
from hibprune.errors import UserError
from hibprune.execution.memory import free_bytes
from hibprune.models.attention import attention_sites

SHARE_OF_FREE_MEMORY = 0.5
COPIES_LEARNT = 10
"""Of all heads' maps while HIB learns them: own and learnt attention, its gradient and moments, and
what the way back through the model holds on to."""
COPIES_READ = 3
"""While attention is only read."""
BYTES = 4


def require_room(method: MethodBase, model: PreTrainedModel, positions: int, copies: int) -> None:
    """See that so many copies of all heads' maps fit into `memory_gib`, or half of what is free.

    Raises:
        UserError: they do not; says for how many positions they would.
    """
    heads = sum(len(site.heads) for site in attention_sites(model))
    device = next(model.parameters()).device
    if isinstance(method, BatchedMethod) and method.memory_gib is not None:
        room, remedy = method.memory_gib * 2**30, "use a shorter one or raise memory_gib"
    else:
        room = SHARE_OF_FREE_MEMORY * free_bytes(device)
        remedy = "use a shorter one or a machine with more memory"
    each = max(1, copies * heads * BYTES)
    if positions**2 * each > room:
        raise UserError(
            f"maps of {positions} positions take {positions**2 * each / 2**30:.1f} GiB and "
            f"{room / 2**30:.1f} may be used, enough for {int((room / each) ** 0.5)}: {remedy}"
        )

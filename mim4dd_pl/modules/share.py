"""What one of several processes does of a common work, and how the parts come together."""

import lightning as L
import torch
from torch import Tensor


def own_share(trainer: L.Trainer, count: int) -> range:
    """The numbers below ``count`` that are this process's: number t belongs to process t mod W."""
    return range(trainer.global_rank, count, trainer.world_size)


def added_up(trainer: L.Trainer, values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes; each must call this, with as many of them."""
    total: Tensor = trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op="sum")
    return total.to(values.device)


def in_order(trainer: L.Trainer, rows: Tensor) -> Tensor:
    """Rows (T / W, ...) of all processes as (T, ...), in the order that :func:`own_share` dealt them out in."""
    parts = [torch.empty_like(rows) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(parts, rows)
    return torch.stack(parts, 1).flatten(0, 1)

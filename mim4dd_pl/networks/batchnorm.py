"""Batch norm without a memory of its own.

In training and in the unroll it normalises with the statistics of its minibatch: a step stays a pure function of
parameters and minibatch. To classify each image alone, the statistics are measured once after the training
(:meth:`~mim4dd_pl.networks.flat.FlatNetwork.calibrate`) and handed over with every call.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = dict[str, Tensor]
"""Mean and variance of the input of each batch norm, each of shape (c_k,), under the names of its empty buffers."""


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of the minibatch, or with those that a functional call puts into its buffers.

    The buffers ``running_mean`` and ``running_var`` are torch's, but nothing runs: they stay empty.

    Source: Ioffe & Szegedy 2015 (arXiv:1502.03167).

    Args:
        channels: c.
        eps: Added to the variance.
        affine: With scale and shift.
    """

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, eps, affine=affine, track_running_stats=False)

    def forward(self, input: Tensor) -> Tensor:
        """Normalised maps of the shape of ``input``, (B, c, h, w)."""
        mean, variance = self.running_mean, self.running_var
        # Not torch.nn.functional's, which refuses a minibatch of one image with 1x1 maps, as an epoch's rest may be.
        return torch.batch_norm(input, self.weight, self.bias, mean, variance, mean is None, 0.0, self.eps, True)


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms of ``network``, ours and others, under their names."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


@torch.no_grad()
def measure(network: nn.Module, classify: Iterable[Tensor]) -> Statistics:
    r"""Mean and variance of what each batch norm of ``network`` receives, averaged over batches.

    Source: precise batch norm, Wu & Johnson 2021 (arXiv:2105.07576), Section 3.

    Departs from it: the variance is the mean of the batches' variances (as in torch's ``momentum=None``, but not
    corrected for the size of a batch), so that a batch measured alone is normalised as it was in training.

    Args:
        network: With or without batch norm.
        classify: Logits of the batches, lazily: each step of the iteration sends one batch through ``network``.

    Returns:
        Two tensors for each batch norm; none without batch norm, where ``classify`` is not consumed.
    """
    norms = batch_norms(network)
    seen: dict[str, list[Tensor]] = {}

    def see(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        variance, mean = torch.var_mean(inputs[0], axes, correction=0)
        seen.setdefault(f"{name}.running_mean", []).append(mean)
        seen.setdefault(f"{name}.running_var", []).append(variance)

    with ExitStack() as hooks:
        for name, norm in norms.items():
            hooks.enter_context(norm.register_forward_pre_hook(partial(see, name)))
        for _ in classify if norms else ():
            pass
    return {name: torch.stack(parts).mean(0) for name, parts in seen.items()}

"""Heads and critic before the first outer step: they learn from pairs of real batches."""

import logging
from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import ImageSet
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.gradients import learned
from mim4dd_pl.objectives.sampling import real_batch

_log = logging.getLogger(__name__)


def warm_up(
    information: InformationTerm,
    network: FlatNetwork,
    real: ImageSet,
    draw: Callable[[Stream], Tensor],
    stream: Stream,
    trainer: L.Trainer,
) -> None:
    """Train heads and critic for ``information.warm_up_steps`` steps of Adam, at its ``lr``.

    In each step a random network shows two batches of real images, each balanced over the classes and drawn without
    the other; one stands for the synthetic images. Of several processes the first trains for all.

    Args:
        information: The term; its heads and critic are changed.
        network: The architecture.
        real: The training images, on the device.
        draw: The parameters (P,) of a step's network, on the device, from the stream of the step.
        stream: Decides; the node of a step is (step,).
        trainer: Whose processes.
    """
    own = learned(information)
    if trainer.is_global_zero:
        _log.info("Heads and critic learn from real images for %d steps first.", information.warm_up_steps)
        optimizer = torch.optim.Adam(own, lr=information.lr)
        for step in range(information.warm_up_steps):
            loss = _loss(information, network, real, draw(stream.at(step)), stream.at(step))
            # DDP's hooks would wait for the other processes in a backward pass.
            gradients = torch.autograd.grad(loss, own, allow_unused=True)
            for parameter, gradient in zip(own, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        optimizer.zero_grad()
    trained = trainer.strategy.broadcast([parameter.detach().cpu() for parameter in own])
    for parameter, values in zip(own, trained, strict=True):
        parameter.data.copy_(values)


def _loss(information: InformationTerm, network: FlatNetwork, real: ImageSet, theta: Tensor, stream: Stream) -> Tensor:
    each = max(1, information.real_batch_size // real.num_classes)
    sides = [real_batch(real, each, stream.at(side)) for side in ("first", "second")]
    with torch.no_grad():
        features = [network.layers(theta, side.images, logits=information.reads_logits) for side in sides]
    loss: Tensor = information(*features, *(side.labels for side in sides)).loss
    return loss

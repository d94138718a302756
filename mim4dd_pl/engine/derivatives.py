"""Derivatives of the training loss of K networks at once: what every inner loop and every training is made of.

:meth:`Derivatives.gradient` is one step's g; :meth:`Derivatives.sweep` pulls a cotangent u of g back, through one more
differentiation of s = <g, u>. Both are pure functions of fixed shapes, so :class:`CompiledDerivatives` compiles them.
Written plainly, a sweep is cheapest as reverse over reverse; compiled, as reverse over forward: one pass along u, whose
result s is differentiated once, which also avoids the double backward that compiled code lacks.

Symbols: K networks, each with P parameters and a minibatch of B images of shape (c, h, w) and B labels: classes, int64
(K, B), or soft labels (K, B, C), along which a sweep has a derivative too.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.engine.flat import FlatNetwork


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Mean cross-entropy, written out so that forward-mode derivatives of it can be differentiated again.

    .. math:: \frac1B \sum_b \sum_c p_{bc} \Big( \log \sum_{c'} e^{z_{bc'}} - z_{bc} \Big)

    with p = 1 at the class of the image and 0 elsewhere for hard labels.

    Args:
        logits: z, shape (B, C).
        labels: Classes, shape (B,), int64 in 0..C-1; or soft labels p, shape (B, C), rows that add up to 1.

    Returns:
        Loss in nats, shape ().
    """
    if labels.ndim == 1:
        return (logits.logsumexp(1) - logits.gather(1, labels[:, None]).squeeze(1)).mean()
    return (labels * (logits.logsumexp(1, keepdim=True) - logits)).sum(1).mean()


View = Callable[[FlatNetwork, Tensor, Tensor], tuple[Tensor, ...]]
"""(network, theta (P,), images (B, c, h, w)) -> what the network shows of the images, each of B rows."""


def features(network: FlatNetwork, theta: Tensor, images: Tensor) -> tuple[Tensor, ...]:
    return (network.layers(theta, images)[-1].flatten(1),)


def logits(network: FlatNetwork, theta: Tensor, images: Tensor) -> tuple[Tensor, ...]:
    return (network(theta, images),)


def layers(network: FlatNetwork, theta: Tensor, images: Tensor) -> tuple[Tensor, ...]:
    return network.layers(theta, images)


def layers_and_logits(network: FlatNetwork, theta: Tensor, images: Tensor) -> tuple[Tensor, ...]:
    return network.layers(theta, images, logits=True)


class Sweep(NamedTuple):
    """s = <g, u> of each network (K,), and its derivatives.

    Along theta (K, P), along the images (K, B, c, h, w) and along soft labels (K, B, C); classes have none.
    """

    s: Tensor
    theta: Tensor
    images: Tensor
    labels: Tensor | None


class Derivatives:
    """Derivatives of the mean cross-entropy of a minibatch, by plain autograd.

    On a CPU a large minibatch is taken in equal chunks of at most 64 images one after another, where its size has such
    a divisor and the network treats each image alone: as fast, in the memory of a chunk.

    Args:
        network: The architecture of all K networks.
    """

    def __init__(self, network: FlatNetwork) -> None:
        self.network = network

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of each network, shape (K,), of theta (K, P), images (K, B, c, h, w) and labels."""
        return network_losses(self.network, theta, images, labels)

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """g, shape (K, P), without a graph."""
        size = self.chunk(images.shape[1], images.device)
        parts = [self._gradient(theta, x, y) for x, y in zip(images.split(size, 1), labels.split(size, 1), strict=True)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)

    def sweep(
        self, theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor, along_theta: bool = True
    ) -> Sweep:
        """Pull back u = ``cotangent``, shape (K, P), through g; without a graph.

        Without ``along_theta`` that derivative is not computed, and zero.
        """
        size = self.chunk(images.shape[1], images.device)
        parts = [
            self._sweep(theta, x, y, cotangent, along_theta)
            for x, y in zip(images.split(size, 1), labels.split(size, 1), strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        s, to_theta, to_images, to_labels = zip(*parts, strict=True)
        return Sweep(
            torch.stack(s).mean(0),
            torch.stack(to_theta).mean(0),
            torch.cat(to_images, 1) / len(parts),
            torch.cat(to_labels, 1) / len(parts) if soft(labels) else None,
        )

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """The last feature map, flattened, shape (B, D), of images (B, c, h, w) under one network's theta (P,).

        With a graph to the images where gradients are on, never to theta. Without a graph its memory is that of a
        chunk, whatever B is.
        """
        return self._chunked(features, theta, images)[0]

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """The same for the logits, shape (B, C)."""
        return self._chunked(logits, theta, images)[0]

    def layers(self, theta: Tensor, images: Tensor, with_logits: bool = False) -> tuple[Tensor, ...]:
        """The same for all feature maps, each (B, c_k, h_k, w_k), and with them the logits where asked for."""
        return self._chunked(layers_and_logits if with_logits else layers, theta, images)

    def _chunked(self, view: View, theta: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        size = self.chunk(len(images), images.device)
        parts = [self._view(view, theta.detach(), part) for part in images.split(size)]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def _view(self, view: View, theta: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        return view(self.network, theta, images)

    def chunk(self, batch_size: int, device: torch.device) -> int:
        """How many images of a minibatch are computed together."""
        return batch_size if self.network.mixes_images else chunk_size(batch_size, device)

    def _gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            return torch.autograd.grad(self.loss(theta, images.detach(), labels).sum(), theta)[0]

    def _sweep(self, theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor, along_theta: bool) -> Sweep:
        with torch.enable_grad():
            theta, images = theta.detach().requires_grad_(), images.detach().requires_grad_()
            labels = labels.detach().requires_grad_(soft(labels))
            (g,) = torch.autograd.grad(self.loss(theta, images, labels).sum(), theta, create_graph=True)
            s = (g * cotangent.detach()).sum(-1)
            inputs = [images, labels] if soft(labels) else [images]
            if along_theta:
                to_theta, *others = torch.autograd.grad(s.sum(), [theta, *inputs])
            else:
                to_theta, others = torch.zeros_like(theta), list(torch.autograd.grad(s.sum(), inputs))
            return Sweep(s.detach(), to_theta, others[0], others[1] if soft(labels) else None)


def soft(labels: Tensor) -> bool:
    """Whether labels are distributions over the classes, and no classes."""
    return labels.is_floating_point()


def chunk_size(batch_size: int, device: torch.device) -> int:
    """The largest divisor of ``batch_size`` in 16..64; all of it where there is none, and on accelerators."""
    divisors = [size for size in range(16, 65) if batch_size % size == 0]
    return divisors[-1] if device.type == "cpu" and divisors else batch_size


class Work(NamedTuple):
    """What a run will ask of one :class:`Derivatives`: known from the recipe alone.

    Args:
        batch_size: B of its minibatches.
        gradients: Gradients of single networks.
        sweeps: Sweeps of single networks.
        one_graph: As much is done by autograd through everything, which is neither compiled nor cut into chunks.
        features: Images whose features or logits are computed, of all minibatches together; with their gradient on the
            pixels an image counts twice.
    """

    batch_size: int
    gradients: int
    sweeps: int = 0
    one_graph: bool = False
    features: int = 0

    @property
    def passes(self) -> int:
        """Forward passes of single images that take as long: three for a gradient, eight for a sweep."""
        return self.batch_size * (3 * self.gradients + 8 * self.sweeps) + self.features

    def times(self, count: int) -> "Work":
        """The work of so many parts of a run that each ask for this."""
        amounts = {name: count * getattr(self, name) for name in ("gradients", "sweeps", "features")}
        return self._replace(**amounts)

    def seconds(self, network: FlatNetwork) -> float:
        """Roughly what it takes in plain form on two cores: at 100 GFLOP/s, over a floor of 1 and 3 ms a call."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            # Two images: a batch norm may refuse one.
            network(network.initial(Stream(0)), torch.zeros(2, *network.image_shape))
        forward = float(counter.get_total_flops()) / 2 / 1e11
        calls = self.gradients * 1e-3 + self.sweeps * 3e-3
        return calls + self.passes * forward


def network_losses(network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(network(theta, images), labels)

    if len(theta) == 1:
        return loss(theta[0], images[0], labels[0])[None]
    losses: Tensor = vmap(loss)(theta, images, labels)
    return losses

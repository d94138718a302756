r"""Derivatives of the training loss of K networks at once: what every inner loop and every training is made of.

:meth:`Derivatives.gradient` is one step's g; :meth:`Derivatives.sweep` pulls a cotangent u of g back, through one more
differentiation of s = <g, u>. Both are pure functions of fixed shapes, so :class:`CompiledDerivatives` compiles them.
Written plainly, a sweep is cheapest as reverse over reverse; compiled, as reverse over forward: one pass along u, whose
result s is differentiated once, which also avoids the double backward that compiled code lacks.

Symbols: K networks, each with P parameters and a minibatch of B images of shape (c, h, w) and B labels: classes, int64
(K, B), or soft labels (K, B, C), along which a sweep has a derivative too.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from mim4dd_pl.functional import cross_entropy
from mim4dd_pl.networks import FlatNetwork
from mim4dd_pl.networks.lowering import NormsAsFormulas, lower
from mim4dd_pl.randomness import Stream

_log = logging.getLogger(__name__)

Compile = Literal["auto", True, False]

_WORTH_COMPILING = 25.0
"""Seconds of plain work for each layer with parameters, as :meth:`Work.seconds` estimates them, from which compiling
pays for itself: it takes one to two minutes for the 7 layers of ConvNetD3, and five to nine for the 41 of ResNet18."""

_VARIANTS = 256


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
        return _losses(self.network, theta, images, labels)

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
        return Sweep(
            torch.stack([part.s for part in parts]).mean(0),
            torch.stack([part.theta for part in parts]).mean(0),
            torch.cat([part.images for part in parts], 1) / len(parts),
            torch.cat([cast(Tensor, part.labels) for part in parts], 1) / len(parts) if soft(labels) else None,
        )

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


class CompiledDerivatives(Derivatives):
    """The same, compiled for minibatches of one size; others, such as the rest of an epoch, take the plain way.

    The first call of each function compiles it (half a minute; seconds from torch's cache). Where that fails, it warns
    and the function stays plain.

    Args:
        network: The architecture.
        batch_size: B.
        device: Where the networks live.
    """

    def __init__(self, network: FlatNetwork, batch_size: int, device: torch.device) -> None:
        super().__init__(network)
        self.size = self.chunk(batch_size, device)
        self.device = device
        lowered = FlatNetwork(
            lambda shape, classes: lower(network.factory(shape, classes), device),
            network.image_shape,
            network.num_classes,
        )

        def losses(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            with NormsAsFormulas():
                return _losses(lowered, theta, images, labels)

        def gradient(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            g: Tensor = grad(lambda theta: losses(theta, images, labels).sum())(theta)
            return g

        def sweep(theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor) -> tuple[Tensor | None, ...]:
            def s(theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
                value = jvp(lambda theta: losses(theta, images, labels), (theta,), (cotangent,))[1]
                return value.sum(), value

            inputs = (0, 1, 2) if soft(labels) else (0, 1)
            (to_theta, to_images, *to_labels), value = grad(s, argnums=inputs, has_aux=True)(theta, images, labels)
            return value, to_theta, to_images, to_labels[0] if to_labels else None

        def direct(theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor) -> tuple[Tensor | None, ...]:
            value, _, *others = sweep(theta, images, labels, cotangent)
            return value, torch.zeros_like(theta), *others  # the compiler leaves out what is not returned

        self._functions: dict[str, Callable[..., Any]] = {
            "gradient": self._compiled(gradient),
            "sweep": self._compiled(sweep),
            "direct": self._compiled(direct),
        }
        self._proven: set[str] = set()

    def _gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        gradient: Tensor | None = self._call("gradient", theta, images, labels)
        return super()._gradient(theta, images, labels) if gradient is None else gradient

    def _sweep(self, theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor, along_theta: bool) -> Sweep:
        name = "sweep" if along_theta else "direct"
        parts: tuple[Any, ...] | None = self._call(name, theta, images, labels, cotangent)
        return super()._sweep(theta, images, labels, cotangent, along_theta) if parts is None else Sweep(*parts)

    def _compiled(self, function: Callable[..., Tensor | tuple[Tensor | None, ...]]) -> Callable[..., Any]:
        graphs = "reduce-overhead" if self.device.type == "cuda" else None
        return torch.compile(function, fullgraph=True, dynamic=False, mode=graphs)

    def _call(self, name: str, theta: Tensor, images: Tensor, *others: Tensor) -> Any:
        """What the compiled function returns; None for another size, or where it does not compile."""
        if images.shape[1] != self.size or name not in self._functions:
            return None
        _allow_variants()
        try:
            # One mode and one layout, or the compiler would make a variant for each; the functions set their own mode.
            with torch.no_grad():
                inputs = [argument.detach().contiguous() for argument in (theta, images, *others)]
                results = self._functions[name](*inputs)
        except Exception as error:  # a compiler fails in as many ways as it has parts
            if name in self._proven or isinstance(error, torch.OutOfMemoryError):
                raise
            del self._functions[name]
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            _log.warning("%s does not compile here, and goes on at plain speed: %s", self.network.name, reason[:200])
            return None
        self._proven.add(name)
        if self.device.type != "cuda":
            return results
        # A CUDA graph writes its next results over these.
        if isinstance(results, Tensor):
            return results.clone()
        return tuple(None if result is None else result.clone() for result in results)


def _allow_variants() -> None:
    """Every network and batch size is a variant of the same three functions; the compiler's default allows eight.

    Its settings belong to the thread, and a backward pass on an accelerator has one of its own.
    """
    if torch._dynamo.config.recompile_limit < _VARIANTS:
        torch._dynamo.config.recompile_limit = _VARIANTS


class Work(NamedTuple):
    """What a run will ask of one :class:`Derivatives`: known from the recipe alone.

    Args:
        batch_size: B of its minibatches.
        gradients: Gradients of single networks.
        sweeps: Sweeps of single networks.
    """

    batch_size: int
    gradients: int
    sweeps: int = 0

    def seconds(self, network: FlatNetwork) -> float:
        """Roughly what it takes in plain form on two cores.

        A gradient is three forward passes and a sweep eight, at 100 GFLOP/s, over a floor of 1 and 3 ms a call.
        """
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            # Two images: a batch norm may refuse one.
            network(network.initial(Stream(0)), torch.zeros(2, *network.image_shape))
        forward = self.batch_size / 2 * float(counter.get_total_flops()) / 1e11
        return self.gradients * (1e-3 + 3 * forward) + self.sweeps * (3e-3 + 8 * forward)


def worth_compiling(network: FlatNetwork, compile: Compile, work: Work) -> bool:
    """Whether to compile for ``work``: as ``compile`` says, or with ``auto`` where the plain way would take minutes.

    It goes by the recipe and not by the clock, so that a repeated run decides as the first one did.
    """
    return work.seconds(network) > _WORTH_COMPILING * network.num_layers if compile == "auto" else compile


def derivatives(network: FlatNetwork, compile: bool, batch_size: int, device: torch.device) -> Derivatives:
    """Compiled or plain derivatives for minibatches of ``batch_size`` on ``device``."""
    return CompiledDerivatives(network, batch_size, device) if compile else Derivatives(network)


def _losses(network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(network(theta, images), labels)

    if len(theta) == 1:
        return loss(theta[0], images[0], labels[0])[None]
    losses: Tensor = vmap(loss)(theta, images, labels)
    return losses

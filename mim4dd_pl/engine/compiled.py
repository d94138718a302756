"""The same derivatives, compiled, and when that pays."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.utils._pytree import tree_map_only

from mim4dd_pl.engine.derivatives import (
    Derivatives,
    Sweep,
    View,
    Work,
    features,
    layers,
    layers_and_logits,
    logits,
    network_losses,
    soft,
)
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.engine.lowering import NormsAsFormulas, lower

_log = logging.getLogger(__name__)

Compile = Literal["auto", True, False]

_WORTH_COMPILING = 25.0
"""Seconds of plain work for each module with parameters, as :meth:`Work.seconds` estimates them, from which compiling
pays for itself: it takes one to two minutes for the 7 layers of ConvNetD3, and five to nine for the 41 of ResNet18."""

_VARIANTS = 256


class _Functions:
    """What is compiled: pure functions of a network in the form for the compiler."""

    def __init__(self, network: FlatNetwork, device: torch.device) -> None:
        self.network = FlatNetwork(
            lambda shape, classes: lower(network.factory(shape, classes), device),
            network.image_shape,
            network.num_classes,
        )
        if network.half_precision:  # for which the compiler's own convolutions are the faster ones
            self.network = network

    def losses(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with NormsAsFormulas():
            return network_losses(self.network, theta, images, labels)

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        g: Tensor = grad(lambda theta: self.losses(theta, images, labels).sum())(theta)
        return g

    def sweep(self, theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        def s(theta: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            value = jvp(lambda theta: self.losses(theta, images, labels), (theta,), (cotangent,))[1]
            return value.sum(), value

        inputs = (0, 1, 2) if soft(labels) else (0, 1)
        (to_theta, to_images, *to_labels), value = grad(s, argnums=inputs, has_aux=True)(theta, images, labels)
        return value, to_theta, to_images, to_labels[0] if to_labels else None

    def view(self, view: View, theta: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        with NormsAsFormulas():
            return view(self.network, theta, images)

    def direct(self, theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        value, _, *others = self.sweep(theta, images, labels, cotangent)
        return value, torch.zeros_like(theta), *others  # the compiler leaves out what is not returned


class _OfLeaf(torch.autograd.Function):
    """A function of a leaf that stands for ``images``: the compiler looks at ``.grad``, and torch warns elsewhere."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, function: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        with torch.enable_grad():
            ctx.leaf = images.detach().requires_grad_()
            ctx.shown = function(ctx.leaf)
        return tuple(each.detach() for each in ctx.shown)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor, None]:
        asked = [(each, u) for each, u in zip(ctx.shown, cotangents, strict=True) if u is not None]
        shown, given = zip(*asked, strict=True)
        return torch.autograd.grad(shown, ctx.leaf, given, retain_graph=True)[0], None


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
        plain, mode = _Functions(network, device), "reduce-overhead" if device.type == "cuda" else None
        self._functions: dict[str, Callable[..., Any]] = {
            function.__name__: torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
            for function in (plain.gradient, plain.sweep, plain.direct)
        }
        # These are part of somebody's graph: not as a CUDA graph, whose next call writes over what a backward reads.
        self._functions |= {
            view.__name__: torch.compile(partial(plain.view, view), fullgraph=True, dynamic=False)
            for view in (features, logits, layers, layers_and_logits)
        }
        self._proven: set[str] = set()

    def _gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        g: Tensor | None = self._call("gradient", theta, images, labels)
        return super()._gradient(theta, images, labels) if g is None else g

    def _sweep(self, theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor, along_theta: bool) -> Sweep:
        name = "sweep" if along_theta else "direct"
        parts: tuple[Any, ...] | None = self._call(name, theta, images, labels, cotangent)
        return super()._sweep(theta, images, labels, cotangent, along_theta) if parts is None else Sweep(*parts)

    def _view(self, view: View, theta: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        name = view.__name__
        shown: tuple[Tensor, ...] | None = self._attempt(name, partial(self._with_graph, name, theta, images))
        return super()._view(view, theta, images) if shown is None else shown

    def _with_graph(self, name: str, theta: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        function, images = partial(self._functions[name], theta), images.contiguous()
        if not (torch.is_grad_enabled() and images.requires_grad):
            return cast(tuple[Tensor, ...], function(images))
        shown = cast(tuple[Tensor, ...], _OfLeaf.apply(images, function))
        if name not in self._proven:  # its backward is compiled when it is first asked for
            torch.autograd.grad(shown[-1].sum(), images, retain_graph=True)
        return shown

    def _call(self, name: str, theta: Tensor, images: Tensor, *others: Tensor) -> Any:
        """What the compiled function returns; None for another size, or where it does not compile."""
        return (
            self._attempt(name, partial(self._alone, name, theta, images, *others))
            if images.shape[1] == self.size
            else None
        )

    def _alone(self, name: str, *arguments: Tensor) -> Any:
        # One mode and one layout, or the compiler would make a variant for each; the functions set their own mode.
        with torch.no_grad():
            results = self._functions[name](*(argument.detach().contiguous() for argument in arguments))
        # A CUDA graph writes its next results over these.
        return tree_map_only(Tensor, Tensor.clone, results) if self.device.type == "cuda" else results

    def _attempt(self, name: str, call: Callable[[], Any]) -> Any:
        """What ``call`` returns; None where the function of this name does not compile."""
        if name not in self._functions:
            return None
        # Every network and batch size is a variant, and the compiler's default allows eight. Its settings belong to the
        # thread, and a backward pass on an accelerator has one of its own.
        if torch._dynamo.config.recompile_limit < _VARIANTS:
            torch._dynamo.config.recompile_limit = _VARIANTS
        try:
            results = call()
        except Exception as error:  # a compiler fails in as many ways as it has parts
            if name in self._proven or isinstance(error, torch.OutOfMemoryError):
                raise
            del self._functions[name]
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            _log.warning("%s does not compile here, and goes on at plain speed: %s", self.network.name, reason[:200])
            return None
        self._proven.add(name)
        return results


def worth_compiling(network: FlatNetwork, compile: Compile, work: Work) -> bool:
    """Whether to compile for ``work``: as ``compile`` says, or with ``auto`` where the plain way would take minutes.

    It goes by the recipe and not by the clock, so that a repeated run decides as the first one did.
    """
    if work.one_graph or compile != "auto":
        return bool(compile) and not work.one_graph
    return work.seconds(network) > _WORTH_COMPILING * network.num_parametric_modules


def derivatives(network: FlatNetwork, compile: bool, batch_size: int, device: torch.device) -> Derivatives:
    """Compiled or plain derivatives for minibatches of ``batch_size`` on ``device``."""
    return CompiledDerivatives(network, batch_size, device) if compile else Derivatives(network)

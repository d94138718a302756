"""A network as a pure function of one flat parameter vector.

Trajectories, unrolls and populations speak of a network's parameters as one vector theta of shape (P,).
:class:`FlatNetwork` reads such a vector: theta, images -> logits.
"""

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from mim4dd_pl.basics.identity import Identity, identity
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.networks.base import Network, NetworkFactory
from mim4dd_pl.networks.batchnorm import Statistics, batch_norms, measure
from mim4dd_pl.networks.external import make_pure


class _ShowLayers(nn.Module):
    """Lets ``functional_call``, which calls modules only, reach the layers of a network."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, logits: bool) -> tuple[Tensor, ...]:
        return self.network.layers_and_logits(images) if logits else self.network.layers(images)


class FlatNetwork:
    """A network without parameters of its own: every call brings them as one vector.

    It is no ``nn.Module`` on purpose: a student must not appear in a LightningModule's parameters.

    Args:
        factory: Builds the architecture.
        image_shape: (channels, height, width) of one image.
        num_classes: Number of logits C.

    Attributes:
        num_parameters: P.
        num_parametric_modules: Modules that hold parameters of their own: more than there are feature maps.
        half_precision: Whether it computes in bfloat16, with parameters and results in float32.
        mixes_images: Whether an image's logits depend on the others of its batch: with batch norm they do, else it is
            measured.
    """

    def __init__(self, factory: NetworkFactory, image_shape: ImageShape, num_classes: int) -> None:
        self.factory = factory
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.half_precision = False
        with Stream(0).at("shape only").as_global():
            self._network = factory(image_shape, num_classes).requires_grad_(False)
        self._show_layers = _ShowLayers(self._network)
        self._shapes = {name: p.shape for name, p in self._network.named_parameters()}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self.num_parameters = sum(self._sizes)
        self.num_parametric_modules = len({name.rpartition(".")[0] for name in self._shapes})
        self.mixes_images = self._measure_mixing()

    @classmethod
    def of(cls, module: nn.Module, image_shape: ImageShape) -> "FlatNetwork":
        """Somebody's classifier, as it computes in training, with the parameters that it has now as initial ones.

        A copy of it: norms take the statistics of their minibatch and remember none, dropout is off. It shows no
        layers.

        Args:
            module: (B, c, h, w) -> logits (B, C).
            image_shape: (c, h, w).

        Raises:
            ValueError: If ``module`` has no parameters, returns no logits, or has norms in evaluation mode.
        """
        if not list(module.parameters()):
            raise ValueError(f"model must have parameters, {type(module).__name__} has none.")
        norms = [norm for norm in module.modules() if isinstance(norm, _NormBase)]
        if any(norm.track_running_stats and not norm.training for norm in norms):
            raise ValueError(
                f"model has a {type(norms[0]).__name__} in evaluation mode, training takes the statistics of each "
                "minibatch: call model.train() first."
            )
        pure = copy.deepcopy(module)
        make_pure(pure)
        with torch.no_grad():
            logits = pure(torch.zeros(2, *image_shape).to(next(pure.parameters())))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model must return logits of shape (B, C), got {got} for B = 2.")
        factory = cast(NetworkFactory, lambda *_: copy.deepcopy(pure))
        return cls(factory, image_shape, logits.shape[1])

    def in_half_precision(self) -> "FlatNetwork":
        """The same network computed in bfloat16 where torch's autocast does: two to three times as fast where a
        processor has it, with two to three digits. Parameters, gradients and results stay in float32.
        """
        network = copy.copy(self)
        network.half_precision = True
        return network

    @property
    def name(self) -> str:
        """Class and settings of the architecture, e.g. ``ConvNet(depth=3, width=128, ...)``."""
        return f"{type(self._network).__name__}({self._network.extra_repr()})"

    @property
    def identity(self) -> Identity:
        """The same as plain data, by which stored trajectories recognise the architecture."""
        return identity(self._network, self._network.settings())

    @torch.no_grad()
    def _measure_mixing(self) -> bool:
        if batch_norms(self._network):
            return True
        images = torch.randn(4, *self.image_shape, generator=Stream(0).at("mixing").generator())
        images = images.to(next(self._network.parameters()))
        together = self._network(images)
        alone = torch.cat([self._network(half) for half in images.split(2)])
        return not torch.allclose(together, alone, rtol=1e-3, atol=1e-4)

    def initial(self, stream: Stream) -> Tensor:
        """Parameters of a freshly initialised network, drawn from ``stream``, shape (P,)."""
        with stream.as_global():
            return self.flatten(self.factory(self.image_shape, self.num_classes))

    def flatten(self, network: nn.Module) -> Tensor:
        """The parameters of ``network`` in the order of ``named_parameters``, detached, shape (P,)."""
        return torch.cat([p.detach().reshape(-1) for p in network.parameters()])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of ``theta``, shape (P,), under the network's parameter names."""
        parts = theta.split(self._sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def __call__(self, theta: Tensor, images: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Logits of ``images`` under parameters ``theta``.

        Args:
            theta: Shape (P,).
            images: Shape (B, c, h, w).
            statistics: Of :meth:`calibrate`, for batch norms; by default these take the statistics of ``images``.

        Returns:
            Shape (B, C).
        """
        named = {**self.unflatten(theta), **(statistics or {})}
        if not self.half_precision:
            logits: Tensor = functional_call(self._network, named, (images,))
            return logits
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = functional_call(self._network, named, (images,))
        return logits.float()

    def layers(
        self, theta: Tensor, images: Tensor, logits: bool = False, statistics: Statistics | None = None
    ) -> tuple[Tensor, ...]:
        """One feature map per block, shallow to deep, each of shape (B, c_k, h_k, w_k); arguments as in a call.

        With ``logits``, these come last, of the same pass, shape (B, C).
        """
        named = {f"network.{name}": part for name, part in {**self.unflatten(theta), **(statistics or {})}.items()}
        if not self.half_precision:
            layers: tuple[Tensor, ...] = functional_call(self._show_layers, named, (images, logits))
            return layers
        with torch.autocast(images.device.type, torch.bfloat16):
            layers = functional_call(self._show_layers, named, (images, logits))
        return tuple(layer.float() for layer in layers)

    def calibrate(self, theta: Tensor, batches: Iterable[Tensor]) -> Statistics:
        """What batch norms need to classify each image alone: the statistics of their inputs over ``batches``.

        Batches are training images, each of shape (B, c, h, w). Networks without batch norm have no statistics, and do
        not read them.
        """
        return measure(self._network, (self(theta, images) for images in batches))

    def layer_shapes(self) -> list[ImageShape]:
        """(channels, height, width) of each feature map of one image."""
        with torch.no_grad():
            maps = self._network.layers(torch.zeros(2, *self.image_shape))  # two: a batch norm may refuse one
        return [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]

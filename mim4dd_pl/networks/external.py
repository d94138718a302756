"""Networks of other libraries, such as torchvision and timm, as students and experts.

Their parameters keep names, order and initialisation. What would make a step depend on anything but parameters and
minibatch is taken out: running statistics, dropout, stochastic depth. Attention is computed by its formula, because the
fused kernels are not twice differentiable. Nothing pretrained, and nothing is downloaded.
"""

import pkgutil
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from mim4dd_pl.basics.errors import first_line
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.networks.base import Network
from mim4dd_pl.networks.batchnorm import BatchNorm


class External(Network):
    """A network that another library builds.

    Grey images are repeated to three channels. In images below about 32x32 the strides of a network made for 224x224
    leave little: see what ``layers`` are worth.

    Args:
        image_shape: (channels, height, width) of one image.
        num_classes: Number of logits C.
        model: Path of an importable callable that returns a module of logits, e.g. ``torchvision.models.resnet18``; it
            is called with ``num_classes`` and ``settings``.
        layers: Names of the submodules whose outputs are the feature maps, shallow to deep, e.g. ``[layer1, layer2]``.
            Maps (B, c, h, w) are shown as they are, tokens (B, n, d) as (B, d, n, 1), vectors (B, d) as (B, d, 1, 1).
        settings: Further arguments of ``model``.

    Raises:
        ValueError: If ``model`` cannot be imported or built, does not classify such images, or has other buffers than
            those of batch norm; or if ``layers`` names what is not there, is not used or shows no such map.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        model: str,
        layers: Sequence[str],
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        settings = dict(settings or {})
        self._settings = {"model": model, "layers": list(layers), "settings": settings}
        self._layers = tuple(layers)
        self._repeats = 3 if image_shape[0] == 1 else 1
        if fetched := {"weights", "pretrained"} & {name for name, value in settings.items() if value}:
            raise ValueError(f"settings must not ask for pretrained weights, got {min(fetched)}: leave it out.")
        try:
            build = pkgutil.resolve_name(model)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                "model must be the path of an importable callable such as torchvision.models.resnet18, got "
                f"{model}: {error}."
            ) from error
        try:
            self.model = build(num_classes=num_classes, **settings)
        except Exception as error:  # another library's: it may raise anything
            raise ValueError(f"model {model} cannot be built with {settings}: {error}") from error
        names = [name for name, _ in self.model.named_modules() if name]
        if not layers or not set(layers) <= set(names):
            raise ValueError(
                f"layers must name submodules of {model}, got {list(layers)}: choose among "
                f"{', '.join(name for name in names if name.count('.') < 2)} and their parts."
            )
        make_pure(self.model)
        if buffers := [name for name, _ in self.model.named_buffers()]:
            raise ValueError(f"model {model} has the buffer {buffers[0]}, expected parameters and batch norms only.")
        self._try(image_shape, num_classes)

    def settings(self) -> dict[str, Any]:
        return self._settings

    def layers(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.layers_and_logits(images)[:-1]

    def layers_and_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        shown: dict[str, Any] = {}
        with ExitStack() as hooks:
            for name in self._layers:
                keep = partial(_keep, shown, name)
                hooks.enter_context(self.model.get_submodule(name).register_forward_hook(keep))
            logits = self(images)
        return (*(_as_map(shown.get(name), name) for name in self._layers), logits)

    def forward(self, images: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            logits: Tensor = self.model(images.repeat(1, self._repeats, 1, 1))
        return logits

    @torch.no_grad()
    def _try(self, image_shape: ImageShape, num_classes: int) -> None:
        images = torch.zeros(2, *image_shape)
        try:
            logits = self(images)
        except Exception as error:
            raise ValueError(f"model does not take images of {image_shape}: {first_line(error)}") from error
        if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model must return logits of shape (B, {num_classes}), got {shape} for B = 2.")
        self.layers(images)


def make_pure(model: nn.Module) -> None:
    """Take out of ``model`` what draws random numbers, remembers batches or overwrites feature maps."""
    model.eval()  # no dropout, no stochastic depth
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                ours = BatchNorm(child.num_features, child.eps, child.affine)
                ours.weight, ours.bias = child.weight, child.bias
                setattr(parent, name, ours)
    for module in model.modules():
        if isinstance(module, _NormBase):  # takes its input's statistics without its own
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
        if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            module.train()  # torch's shortcut for evaluation has no derivatives
            for part in module.modules():
                if isinstance(part, nn.Dropout):
                    part.p = 0.0
                elif isinstance(part, nn.MultiheadAttention):
                    part.dropout = 0.0


def _keep(shown: dict[str, Any], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    shown[name] = output


def _as_map(output: Any, name: str) -> Tensor:
    """An output as (B, c, h, w)."""
    if isinstance(output, Tensor):
        if output.ndim == 4:
            return output
        if output.ndim == 3:
            return output.transpose(1, 2)[..., None]
        if output.ndim == 2:
            return output[..., None, None]
    got = "nothing: it is not used" if output is None else getattr(output, "shape", type(output).__name__)
    raise ValueError(f"layers must name submodules that show one map, {name} shows {got}.")

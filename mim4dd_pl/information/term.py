"""The information term: a layer-wise contrastive lower bound on I(real; synthetic), as an add-on to any host.

For each of K layers a head g_phi embeds the feature maps of synthetic and real images, and a critic judges the
embeddings. The logits may be such a layer: hidden units of two networks share no basis, the classes are one that all
classifiers share. The term is the weighted sum of the layers' losses, Eq. 2.17 of Shang et al. 2023 (arXiv:2312.16627).
Treating layers as invertible maps, which lets the bound move from images to features, is a heuristic: ReLU and pooling
lose information.

Not done here: with ``balance="gradient"`` the term's gradient meets the host's in
:func:`~mim4dd_pl.information.backward.balanced_backward`, or wherever else :meth:`InformationTerm.factor` is asked.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.information.critics import Critic, InfoNCECritic
from mim4dd_pl.information.heads import Head, LinearHead
from mim4dd_pl.information.losses import balance, layer_weights

Balance = Literal["gradient", "literal"]
Networks = Literal["shared", "student", "own"]
RealSampling = Literal["uniform", "balanced"]


class Information(NamedTuple):
    """The term's value, shape (), and the bound of each chosen layer in nats, shape (K,), NaN where there is none."""

    loss: Tensor
    bounds: Tensor


class InformationTerm(nn.Module):
    r"""Heads, critic and layer weights.

    .. math:: \sum_{k=1}^{K} L_k \,/\, \beta^{K-1-k}

    In a training loop of your own, with a literal weight ``(host_loss + term(...).loss).backward()``, and else
    ``balanced_backward(host_loss, term(...).loss, images, share=term.weight)``.

    The term itself reads neither the settings of the real images nor ``warm_up_steps`` nor ``lr``, but for freezing at
    zero: they are kept for whoever draws the images and steps heads and critic, in a distillation the
    DistillationModule.

    Args:
        layer_shapes: (c_k, h_k, w_k) of the network's feature maps, shallow to deep: ``layer1``, ``layer2`` and so on.
        num_classes: C, at least 2.
        critic: Builds the critic from C; :class:`InfoNCECritic` by default (the choice that never clearly hurt).
        embedding: Builds the head of a layer from its shape.
        layers: Names of the layers that take part: ``layer1``, ``layer2`` and so on, and ``logits``, which are centred
            over the classes, as a softmax sees them, and are a map of (C, 1, 1) to their head. All but the logits by
            default; K counts those that take part alone, the logits as the deepest.
        weight: lambda, at least 0.
        balance: ``gradient``: the term's pixel gradient is to be lambda times as long as the host's. ``literal``, the
            paper's: the loss is multiplied by lambda, for heads and critic too.
        layer_decay: beta, at least 1.
        networks: Who shows the features. ``shared``: one network for both sides, the expert where the host has one and
            else the student. ``student``: the student for both. ``own``, the paper's: synthetic images go through the
            student, real ones through the expert.
        through_student: Let the gradient also flow through the student's weights to the images that trained it.
        real_batch_size: Real images per step, dealt to its segments.
        real_sampling: ``uniform`` draws them from all, ``balanced`` as many of each class.
        lr: Adam's learning rate for heads and critic; 0 freezes them as they are initialised.
        warm_up_steps: Steps in which heads and critic learn from pairs of real batches before the first outer step; at
            least 0, which is all that fits where nothing learns.
    """

    def __init__(
        self,
        layer_shapes: Sequence[ImageShape],
        num_classes: int,
        critic: Callable[[int], Critic] = InfoNCECritic,
        embedding: Callable[[ImageShape], Head] = LinearHead,
        layers: list[str] | None = None,
        weight: float = 0.3,
        balance: Balance = "gradient",
        layer_decay: float = 2.0,
        networks: Networks = "shared",
        through_student: bool = False,
        real_batch_size: int = 256,
        real_sampling: RealSampling = "uniform",
        lr: float = 1e-3,
        warm_up_steps: int = 0,
    ) -> None:
        super().__init__()
        _check_ranges(num_classes, weight, layer_decay, real_batch_size, lr, warm_up_steps)
        words = {"balance": (balance, Balance), "networks": (networks, Networks)}
        _check_words(**words, real_sampling=(real_sampling, RealSampling))
        if through_student and networks == "shared":
            raise ValueError(
                "through_student needs the student's features, got networks shared: set it to student or own."
            )
        self._num_maps = len(layer_shapes)
        self._chosen = _chosen(layers, self._num_maps)
        self.critic = critic(num_classes)
        shapes = [*layer_shapes, (num_classes, 1, 1)]
        self.heads = nn.ModuleList([embedding(shapes[k]) for k in self._chosen])
        self.num_classes = num_classes
        self.weight = weight
        self.balance = balance
        self.networks = networks
        self.through_student = through_student
        self.real_batch_size = real_batch_size
        self.real_sampling = real_sampling
        self.lr = lr
        self.warm_up_steps = warm_up_steps
        if lr == 0:
            self.requires_grad_(False)
        if warm_up_steps and not any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(
                f"warm_up_steps must be 0 where neither heads nor critic learn, got {warm_up_steps} with an lr of {lr}."
            )
        self.layer_weights: Tensor
        self.register_buffer("layer_weights", layer_weights(len(self._chosen), layer_decay), persistent=False)

    @property
    def layers(self) -> list[str]:
        """Names of the layers that take part, shallow to deep."""
        names = _names(self._num_maps)
        return [names[k] for k in self._chosen]

    @property
    def reads_logits(self) -> bool:
        """Whether the logits are among its layers: they then follow the feature maps in a call."""
        return self._chosen[-1] == self._num_maps

    @property
    def needs_expert(self) -> bool:
        """Whether it only works beside a host that reads experts."""
        return self.networks == "own"

    def factor(self, host: Tensor, term: Tensor) -> Tensor:
        """What the term's gradient is multiplied with, shape (): 1 with a literal weight, which is in the loss already.

        ``host`` and ``term`` are gradients on the pixels, of one shape.
        """
        return host.new_ones(()) if self.balance == "literal" else balance(host, term, self.weight)

    def features_of(self, student: Tensor, expert: Tensor | None) -> tuple[Tensor, Tensor]:
        """The parameters, each (P,), through which synthetic and real images are seen.

        Args:
            student: theta_N, with its graph.
            expert: theta*_{t+M}; None beside a host that reads no experts.

        Raises:
            ValueError: If there is no expert and the term needs one.
        """
        if not self.through_student:
            student = student.detach()
        if self.networks == "own":
            if expert is None:
                raise ValueError("networks own needs an objective that reads experts: set it to shared or student.")
            return student, expert
        seen_by = student if expert is None or self.networks == "student" else expert
        return seen_by, seen_by

    def forward(
        self,
        synthetic: Sequence[Tensor],
        real: Sequence[Tensor],
        synthetic_labels: Tensor,
        real_labels: Tensor,
    ) -> Information:
        """The term on one pair of batches: the weighted sum over the layers, times lambda if that is literal.

        Args:
            synthetic: Feature maps of the synthetic images, of all layers, each (S, c_k, h_k, w_k); where the term
                reads logits, these too, as the last, shape (S, C). ``network.layers(theta, images, logits=True)`` of a
                :class:`~mim4dd_pl.engine.flat.FlatNetwork` gives both.
            real: The same of the real images, R for S.
            synthetic_labels: Shape (S,), in 0..C-1.
            real_labels: Shape (R,), in 0..C-1.

        Raises:
            ValueError: If there are more or fewer maps, the logits are no (B, C), or labels have another shape or are
                out of range. The range is looked at on the CPU alone: an accelerator would wait.
        """
        self._check_side("synthetic", synthetic, synthetic_labels)
        self._check_side("real", real, real_labels)
        verdicts = [
            self.critic(head(self._map(synthetic, k)), head(self._map(real, k)), synthetic_labels, real_labels)
            for k, head in zip(self._chosen, self.heads, strict=True)
        ]
        losses, bounds = (torch.stack(parts) for parts in zip(*verdicts, strict=True))
        loss = losses @ self.layer_weights
        return Information(self.weight * loss if self.balance == "literal" else loss, bounds)

    def _map(self, maps: Sequence[Tensor], k: int) -> Tensor:
        """Layer k as its head takes it, (B, c_k, h_k, w_k)."""
        return maps[k] if k < self._num_maps else (maps[k] - maps[k].mean(1, keepdim=True))[..., None, None]

    def _check_side(self, side: str, maps: Sequence[Tensor], labels: Tensor) -> None:
        """Refuse what does not fit the network or its labels."""
        classes, logits = self.num_classes, self.reads_logits
        if len(maps) != (count := self._num_maps + logits):
            expected = "feature maps and logits" if logits else "feature maps"
            raise ValueError(f"{side} must hold {count} tensors, {expected}, got {len(maps)}.")
        if logits and maps[-1].shape[1:] != (classes,):
            raise ValueError(f"{side} must end with logits of shape (B, {classes}), got {tuple(maps[-1].shape)}.")
        if labels.shape != (size := len(maps[self._chosen[0]]),):
            raise ValueError(f"{side}_labels must be of shape ({size},), got {tuple(labels.shape)}.")
        if labels.device.type == "cpu" and ((labels < 0) | (labels >= classes)).any():
            raise ValueError(
                f"{side}_labels must lie in 0..{classes - 1}, got {int(labels.min())} to {int(labels.max())}."
            )


def _names(num_maps: int) -> list[str]:
    return [*(f"layer{k + 1}" for k in range(num_maps)), "logits"]


def _chosen(layers: Sequence[str] | None, num_maps: int) -> list[int]:
    """Layers by number, shallow to deep; the logits follow the maps."""
    names = _names(num_maps)
    layers = names[:-1] if layers is None else layers
    if not layers or not set(layers) <= set(names) or len(set(layers)) < len(layers):
        raise ValueError(
            f"layers must name one or more of {', '.join(names)}, each once, got {', '.join(layers) or 'none'}."
        )
    return sorted(names.index(name) for name in layers)


def _check_ranges(
    num_classes: int, weight: float, layer_decay: float, real_batch_size: int, lr: float, warm_up_steps: int
) -> None:
    if num_classes < 2:
        raise ValueError(f"The information term contrasts classes and needs at least 2, got {num_classes}.")
    check_positive(real_batch_size=real_batch_size)
    ranges = (
        ("weight", weight, 0),
        ("layer_decay", layer_decay, 1),
        ("lr", lr, 0),
        ("warm_up_steps", warm_up_steps, 0),
    )
    for name, value, least in ranges:
        if not least <= value < math.inf:
            raise ValueError(f"{name} must be at least {least} and finite, got {value}.")


def _check_words(**settings: tuple[str, object]) -> None:
    """Refuse a setting that is none of the words of its Literal."""
    for name, (value, words) in settings.items():
        if value not in get_args(words):
            raise ValueError(f"{name} must be {' or '.join(get_args(words))}, got {value}.")

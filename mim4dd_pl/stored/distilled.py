"""A distilled set as a value: images, labels and what belongs to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mim4dd_pl.data.formation import decode, mix
from mim4dd_pl.data.normalization import Normalization
from mim4dd_pl.data.sets import InMemory

_WHITENING = {"mean", "matrix"}


@dataclass(frozen=True)
class Distilled:
    """A distilled set and what belongs to it.

    Args:
        images: Normalised pixels as trained, shape (S, c, h, w), float32.
        labels: The class of each, shape (S,), int64.
        label_logits: Logits of soft labels of the decoded images, shape (S f^2, C), if there are any.
        student_lr: alpha, shape ().
        normalization: How real images with pixels in [0, 1] become what ``images`` are, on the CPU.
        classes: Name of each label.
        facts: What to know about it: data set, recipe, seed, accuracy, versions; plain text values.
        formation: f: each image is a canvas of f x f smaller ones, which students train on, enlarged.
    """

    images: Tensor
    labels: Tensor
    label_logits: Tensor | None
    student_lr: Tensor
    normalization: Normalization
    classes: tuple[str, ...]
    facts: Mapping[str, str]
    formation: int = 1

    def decoded(self) -> "Distilled":
        """The same set with a stored image for each that students train on; itself without a formation."""
        if self.formation == 1:
            return self
        images, labels = decode(self.images, self.formation), self.labels.repeat_interleave(self.formation**2)
        return replace(self, images=images, labels=labels, formation=1)

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """The images at ``rows`` as they look: normalisation undone, clamped to [0, 1], shape (len(rows), c, h, w)."""
        images = self.images[list(rows)].detach().cpu()
        if self.formation > 1 and self.normalization.whitening is not None:  # it belongs to whole images
            return mix(self.normalization.inverse(decode(images, self.formation)), self.formation).clamp(0, 1)
        return self.normalization.inverse(images).clamp(0, 1)

    def shown(self, per_class: int = 10) -> dict[int, list[int]]:
        """Rows of the first ``per_class`` images of each class, by label."""
        rows: dict[int, list[int]] = {}
        for row, label in enumerate(self.labels.tolist()):
            rows.setdefault(label, []).append(row)
        return {label: rows[label][:per_class] for label in sorted(rows)}

    def training_set(self, device: torch.device) -> InMemory:
        """What a student is trained on: the decoded images with their classes, or with their soft labels."""
        decoded = self.decoded()
        labels = decoded.labels if self.label_logits is None else self.label_logits.softmax(1)
        return InMemory(decoded.images.to(device), labels.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name; the whitening's parts as ``whitening.<name>``."""
        normalization, whitening = self.normalization, self.normalization.whitening
        tensors = {
            "images": self.images,
            "labels": self.labels,
            "student_lr": self.student_lr,
            "mean": normalization.mean,
            "std": normalization.std,
        }
        if self.label_logits is not None:
            tensors["label_logits"] = self.label_logits
        if whitening is not None:
            tensors |= {f"whitening.{name}": getattr(whitening, name) for name in _WHITENING}
        return {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}


def sheet(distilled: Distilled) -> Tensor:
    """The first ten images of the first hundred classes: a class a row, or ten classes a row with one image of each.

    Returns:
        Shape (3, H, W) in [0, 1].
    """
    rows = list(distilled.shown().values())[:100]
    per_row = max(map(len, rows))
    return grid(distilled.pixels([row for each in rows for row in each]), per_row if per_row > 1 else 10)


def grid(pixels: Tensor, per_row: int, side: int = 64) -> Tensor:
    """A grid of images, small ones enlarged without smoothing.

    Args:
        pixels: Shape (S, c, h, w) in [0, 1].
        per_row: Images per row.
        side: Images are enlarged by the largest whole factor that keeps them within this many pixels.

    Returns:
        Shape (3, H, W) in [0, 1].
    """
    factor = max(1, side // pixels.shape[-1])
    large = pixels.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    from torchvision.utils import make_grid  # slow to import, and needed here only

    image: Tensor = make_grid(large, nrow=per_row, padding=4, pad_value=1.0)
    return image


def save_png(pixels: Tensor, path: Path) -> None:
    """Write an image (c, h, w) with pixels in [0, 1] as an 8-bit PNG file."""
    from torchvision.transforms.v2.functional import to_pil_image  # slow to import, and needed here only

    to_pil_image(pixels).save(path, format="png")


def to_facts(**values: object) -> dict[str, str]:
    """Facts for the card: names with spaces for underscores, values as text."""
    return {name.replace("_", " "): str(value) for name, value in values.items()}

"""A distilled set as a torch Dataset."""

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from mim4dd_pl.stored.artefact import read_distilled


class DistilledDataset(Dataset[tuple[Tensor, int | Tensor]]):
    """A distilled set as a torch Dataset of (normalised image (c, h, w), label).

    Images of a set with a formation are decoded: each stored one, a canvas, gives f x f of them. A label is a class;
    where soft labels were learned, it is their distribution over the classes, shape (C,), which
    torch's cross-entropy takes as well. Real images to test on must be normalised by ``normalize``, as the set was.

    Args:
        folder: The artefact's folder.

    Attributes:
        images: Shape (S, c, h, w), float32.
        canvases: The stored images; without a formation the same as ``images``.
        formation: f, tiles a side of each stored image; 1 where they are whole images.
        labels: The class of each, shape (S,), int64.
        soft_labels: Shape (S, C), rows that add up to 1; None where classes are all that there is.
        student_lr: The learning rate learned together with the images.
        classes: Name of each label.
        facts: Data set, recipe, seed, accuracy.

    Raises:
        StoredFileError: If the artefact is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        stored = read_distilled(Path(folder))
        self.canvases, self.formation = stored.images, stored.formation
        self._distilled = stored.decoded()
        self.images = self._distilled.images
        self.labels = self._distilled.labels
        logits = self._distilled.label_logits
        self.soft_labels = None if logits is None else logits.softmax(1)
        self.student_lr = float(self._distilled.student_lr)
        self.classes = self._distilled.classes
        self.facts = dict(self._distilled.facts)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        label = int(self.labels[index]) if self.soft_labels is None else self.soft_labels[index]
        return self.images[index], label

    def normalize(self, pixels: Tensor) -> Tensor:
        """Real images with pixels in [0, 1], shape (..., c, h, w), as networks trained on this set expect them."""
        return self._distilled.normalization.to(pixels)(pixels)

    def pixels(self) -> Tensor:
        """All learned images as they look: normalisation undone, clamped to [0, 1], shape (S, c, h, w)."""
        return self._distilled.pixels(range(len(self)))

"""The data set as Lightning sees it: steps to count, and batches to evaluate on."""

from collections.abc import Iterator

import lightning as L
import torch

from mim4dd_pl.data.catalog import Pixels, Source
from mim4dd_pl.data.sets import Batch, ImageSet, statistics, stratified_split
from mim4dd_pl.errors import DataError
from mim4dd_pl.shapes import ImageShape


class _Steps:
    """0, 1, 2, ... for ever: the modules draw their own data, the Trainer only counts."""

    def __iter__(self) -> Iterator[int]:
        step = 0
        while True:
            yield step
            step += 1


class _EvaluationBatches:
    """A split in order, as a loader with a length."""

    def __init__(self, images: ImageSet, size: int) -> None:
        self._images = images
        self._size = size

    def __len__(self) -> int:
        return -(-len(self._images) // self._size)

    def __iter__(self) -> Iterator[Batch]:
        return self._images.batches(self._size)


class ImageDataModule(L.LightningDataModule):
    """Training, validation and test images of one source, in memory as uint8.

    The validation images are a stratified part of the training images; they choose checkpoints, the test images only
    report. The split depends on ``split_seed`` alone, so runs with different seeds are compared on the same images.

    Args:
        source: Where the images come from.
        validation_fraction: Part of the training images that is held out, in (0, 1).
        max_train_images: Keep a stratified part of this many training images (after the validation split).
        evaluation_batch_size: Images per evaluation batch.
        split_seed: Decides the split.

    Attributes:
        train, validation, test: The splits, after ``setup``.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet

    def __init__(
        self,
        source: Source,
        validation_fraction: float = 0.1,
        max_train_images: int | None = None,
        evaluation_batch_size: int = 512,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < validation_fraction < 1:
            raise ValueError(f"data.validation_fraction must lie between 0 and 1, got {validation_fraction}.")
        if evaluation_batch_size < 1:
            raise ValueError(f"data.evaluation_batch_size must be at least 1, got {evaluation_batch_size}.")
        if split_seed < 0:
            raise ValueError(f"data.split_seed must be at least 0, got {split_seed}.")
        self.source = source
        self.validation_fraction = validation_fraction
        self.max_train_images = max_train_images
        self.evaluation_batch_size = evaluation_batch_size
        self.split_seed = split_seed
        self._loaded = False

    @property
    def image_shape(self) -> ImageShape:
        """(channels, height, width) of one image."""
        return self.source.image_shape

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.source.classes)

    def setup(self, stage: str | None = None) -> None:
        """Load once, check, split and measure the statistics.

        Raises:
            DataError: If the images or labels are not what the source promises.
        """
        if self._loaded:
            return
        if self.num_classes < 2:
            raise DataError(f"{self.source.name} has {self.num_classes} class, at least 2 are needed.")
        train, test = self.source.load()
        for split, pixels in (("training", train), ("test", test)):
            self._check(split, pixels)
        kept, held = stratified_split(
            train.labels, max(1, round(self.validation_fraction * len(train.labels))), self.split_seed
        )
        if self.max_train_images is not None:
            if not self.num_classes <= self.max_train_images <= len(kept):
                raise DataError(
                    f"data.max_train_images must lie in {self.num_classes}..{len(kept)} for {self.source.name}, got "
                    f"{self.max_train_images}."
                )
            if self.max_train_images < len(kept):
                _, part = stratified_split(train.labels[kept], self.max_train_images, self.split_seed)
                kept = kept[part]
        left = torch.bincount(train.labels[kept], minlength=self.num_classes)
        if int(left.min()) == 0:
            raise DataError(
                f"{self.source.name}: class {self.source.classes[int(left.argmin())]} has no training images left "
                "beside the validation images: lower data.validation_fraction or raise data.max_train_images."
            )
        mean, std = statistics(train.images[kept])
        self.train = ImageSet(train.images[kept], train.labels[kept], mean, std, self.num_classes)
        self.validation = ImageSet(train.images[held], train.labels[held], mean, std, self.num_classes)
        self.test = ImageSet(test.images, test.labels, mean, std, self.num_classes)
        self._loaded = True

    def train_dataloader(self) -> _Steps:
        return _Steps()

    def val_dataloader(self) -> _EvaluationBatches:
        return _EvaluationBatches(self.validation, self.evaluation_batch_size)

    def test_dataloader(self) -> _EvaluationBatches:
        return _EvaluationBatches(self.test, self.evaluation_batch_size)

    def _check(self, split: str, pixels: Pixels) -> None:
        if tuple(pixels.images.shape[1:]) != self.image_shape:
            raise DataError(
                f"{self.source.name}: {split} images have shape {tuple(pixels.images.shape[1:])}, expected "
                f"{self.image_shape}."
            )
        counts = torch.bincount(pixels.labels.clamp(min=0), minlength=self.num_classes)
        if pixels.labels.min() < 0 or len(counts) > self.num_classes:
            raise DataError(
                f"{self.source.name}: {split} labels lie in {int(pixels.labels.min())}..{int(pixels.labels.max())}, "
                f"expected 0..{self.num_classes - 1}."
            )
        if split == "training" and int(counts.min()) < 2:
            label = self.source.classes[int(counts.argmin())]
            raise DataError(
                f"{self.source.name}: class {label} has {int(counts.min())} training images, at least 2 are needed "
                "(labels count from 0)."
            )

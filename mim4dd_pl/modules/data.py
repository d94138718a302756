"""The data set as Lightning sees it: steps to count, and batches to evaluate on."""

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, cast

import lightning as L
import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DataError
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.cache import Cache, Decoded
from mim4dd_pl.data.normalization import MOST_FEATURES, Normalization
from mim4dd_pl.data.sets import Batch, ImageSet, check_per_class, fingerprint, stratified_split
from mim4dd_pl.data.sources import Source, delivered

_log = logging.getLogger(__name__)


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
    """Training, validation and test images of one source, uint8 until they are used.

    The validation images choose checkpoints, the test images only report. Validation images are a stratified part of
    the training images; the split depends on ``split_seed`` alone, so runs with different seeds are compared on the
    same images.

    Args:
        source: Where the images come from.
        validation_fraction: Part of the training images that is held out, in (0, 1).
        max_train_images: Keep a stratified part of this many training images (after the validation split).
        evaluation_batch_size: Images per evaluation batch.
        split_seed: Decides the split.
        validate_on: ``held_out`` as above, or ``test``: train on all training images and choose by the test images, as
            the literature does; accuracies so chosen are optimistic.
        zca: Whiten the images (ZCA), all by the training images.
        cache: Folder where decoded images are kept; null decodes into memory every time.

    Attributes:
        train, validation, test: The splits, after ``setup``.
        normalizes_as_fitted: Whether they are normalised by what was fitted on the training images.
        data_set: What networks are trained on, in words; experts trained on another one do not fit.
        image_shape: (channels, height, width) of one image.
        num_classes: C.
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
        validate_on: Literal["held_out", "test"] = "held_out",
        zca: bool = False,
        cache: str | None = "checkpoints/decoded",
    ) -> None:
        super().__init__()
        if not 0 < validation_fraction < 1:
            raise ValueError(f"data.validation_fraction must lie between 0 and 1, got {validation_fraction}.")
        if evaluation_batch_size < 1:
            raise ValueError(f"data.evaluation_batch_size must be at least 1, got {evaluation_batch_size}.")
        if split_seed < 0:
            raise ValueError(f"data.split_seed must be at least 0, got {split_seed}.")
        if cache == "":
            raise ValueError("data.cache must name a folder or be null, got nothing.")
        if len(source.classes) < 2:
            raise DataError(f"{source.name} has {len(source.classes)} class, at least 2 are needed.")
        if zca and (features := math.prod(source.image_shape)) > MOST_FEATURES:
            raise DataError(
                f"data.zca takes images of up to {MOST_FEATURES:,} numbers, those of {source.name} have "
                f"{features:,} ({'x'.join(map(str, source.image_shape))}): set data.zca to false or a smaller "
                "data.source.image_size."
            )
        self.source = source
        self.validation_fraction = validation_fraction
        self.max_train_images = max_train_images
        self.evaluation_batch_size = evaluation_batch_size
        self.split_seed = split_seed
        self.validate_on = validate_on
        self.zca = zca
        self.cache = cache
        self._rows: tuple[Tensor, Tensor] | None = None
        self._ready = False
        self.normalizes_as_fitted = True
        self.data_set = f"{source.name}, whitened" if zca else source.name
        self.image_shape: ImageShape = source.image_shape
        self.num_classes = len(source.classes)

    def split(self) -> tuple[Tensor, Tensor]:
        """Read and check the labels and decide the split, once; no image is decoded and nothing is written.

        Returns:
            Rows of the source's training images: those to train on, and those held out.

        Raises:
            DataError: If files are missing, or the labels are not what the source promises.
        """
        if self._rows is None:
            self._cache = Cache(self.source, self.cache)
            self._decoded = self._cache.find()
            self._loaded = None if self._decoded is not None else delivered(self.source)
            train, test = self._decoded or self._loaded  # type: ignore[misc]
            self._check("training", train.labels)
            self._check("test", test.labels)
            self._labels = train.labels
            self._rows = self._decide(train.labels)
        return self._rows

    def setup(self, stage: str | None = None) -> None:
        """Decode the images or find them decoded, and measure the statistics, once.

        Raises:
            DataError: If the images are not what the source promises.
        """
        if self._ready:
            return
        kept, held = self.split()
        if self._loaded is not None:
            self._decoded, self._loaded = self._cache.decode(self._loaded), None
        train, test = cast(tuple[Decoded, Decoded], self._decoded)
        normalization = self._cache.normalization(train, kept, fingerprint(train.content, kept), self.zca)

        if self.image_shape[0] == 3 and all(
            len(moments.unique()) == 1 for moments in (normalization.mean, normalization.std)
        ):
            _log.info(
                "The images of %s are grey in three equal channels, and learned ones may take on colours: "
                "data.source.channels 1 reads pictures as grey, other sets are grey where they store one channel.",
                self.source.name,
            )

        def images(decoded: Decoded, rows: Tensor) -> ImageSet:
            labels = decoded.labels[rows]
            return ImageSet(decoded.images, rows, labels, normalization, self.num_classes, decoded.content)

        self.train = images(train, kept)
        self.test = images(test, torch.arange(len(test.labels)))
        self.validation = images(train, held) if self.validate_on == "held_out" else self.test
        self._ready = True

    def normalize_as(self, normalization: Normalization) -> None:
        """Show the images of all splits as a distilled set from elsewhere was made."""
        self.normalizes_as_fitted = normalization.equals(self.train.normalization)
        self.train, self.validation, self.test = (
            replace(images, normalization=normalization) for images in (self.train, self.validation, self.test)
        )

    def check_images_per_class(self, count: int) -> None:
        """Refuse to draw more real training images of each class than there are, before any is decoded."""
        kept, _ = self.split()
        check_per_class(self._labels[kept], self.num_classes, count)

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the training and the test images with their labels: what a run cannot change on its way."""
        return {"training": self.train.fingerprint(), "test": self.test.fingerprint()}

    def train_dataloader(self) -> Iterator[int]:
        """0, 1, 2, ... for ever: the modules draw their own data, the Trainer only counts."""
        return itertools.count()

    def val_dataloader(self) -> _EvaluationBatches:
        return _EvaluationBatches(self.validation, self.evaluation_batch_size)

    def test_dataloader(self) -> _EvaluationBatches:
        return _EvaluationBatches(self.test, self.evaluation_batch_size)

    def _decide(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        kept, held = torch.arange(len(labels)), torch.empty(0, dtype=torch.int64)
        if self.validate_on == "held_out":
            kept, held = stratified_split(
                labels, max(1, round(self.validation_fraction * len(labels))), self.split_seed
            )
        if self.max_train_images is not None:
            if not self.num_classes <= self.max_train_images <= len(kept):
                raise DataError(
                    f"data.max_train_images must lie in {self.num_classes}..{len(kept)} for {self.source.name}, got "
                    f"{self.max_train_images}."
                )
            if self.max_train_images < len(kept):
                _, part = stratified_split(labels[kept], self.max_train_images, self.split_seed)
                kept = kept[part]
        left = torch.bincount(labels[kept], minlength=self.num_classes)
        if int(left.min()) == 0:
            raise DataError(
                f"{self.source.name}: class {self.source.classes[int(left.argmin())]} has no training images left "
                "beside the validation images: lower data.validation_fraction or raise data.max_train_images."
            )
        return kept, held

    def _check(self, split: str, labels: Tensor) -> None:
        counts = torch.bincount(labels.clamp(min=0), minlength=self.num_classes)
        if len(labels) == 0 or labels.min() < 0 or len(counts) > self.num_classes:
            found = f"{int(labels.min())}..{int(labels.max())}" if len(labels) else "nothing"
            raise DataError(f"{self.source.name}: {split} labels lie in {found}, expected 0..{self.num_classes - 1}.")
        if split == "training" and int(counts.min()) < 2:
            label = self.source.classes[int(counts.argmin())]
            raise DataError(
                f"{self.source.name}: class {label} has {int(counts.min())} training images, at least 2 are needed "
                "(labels count from 0)."
            )

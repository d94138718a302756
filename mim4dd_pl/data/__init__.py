"""Image data sets and how they reach the Trainer."""

from mim4dd_pl.data.catalog import (
    MNIST,
    Batch,
    Digits,
    ImageFolder,
    ImageSet,
    Indexable,
    InMemory,
    Npz,
    Source,
)
from mim4dd_pl.data.datamodule import ImageDataModule

__all__ = [
    "MNIST",
    "Batch",
    "Digits",
    "ImageDataModule",
    "ImageFolder",
    "ImageSet",
    "InMemory",
    "Indexable",
    "Npz",
    "Source",
]

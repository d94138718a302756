"""Image data sets and how they reach the Trainer."""

from mim4dd_pl.data.catalog import MNIST, Digits, ImageFolder, Npz, Source
from mim4dd_pl.data.datamodule import ImageDataModule
from mim4dd_pl.data.sets import Batch, ImageSet, Indexable, InMemory

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

"""Image data sets and how they reach the Trainer."""

from mim4dd_pl.data.catalog import CIFAR10, CIFAR100, KMNIST, MNIST, SVHN, Digits, FashionMNIST, Source, Split
from mim4dd_pl.data.datamodule import ImageDataModule
from mim4dd_pl.data.folder import ImageFolder
from mim4dd_pl.data.npz import Npz
from mim4dd_pl.data.sets import Batch, ImageSet, Indexable, InMemory

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "KMNIST",
    "MNIST",
    "SVHN",
    "Batch",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "ImageSet",
    "InMemory",
    "Indexable",
    "Npz",
    "Source",
    "Split",
]

"""Classifiers that can show their layers."""

from mim4dd_pl.networks.alexnet import AlexNet
from mim4dd_pl.networks.base import Network, NetworkFactory
from mim4dd_pl.networks.batchnorm import BatchNorm, Statistics
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.networks.external import External
from mim4dd_pl.networks.flat import FlatNetwork
from mim4dd_pl.networks.lenet import LeNet
from mim4dd_pl.networks.mlp import MLP
from mim4dd_pl.networks.resnet import ResNet18
from mim4dd_pl.networks.vgg import VGG11
from mim4dd_pl.networks.vit import ViT

__all__ = [
    "MLP",
    "VGG11",
    "AlexNet",
    "BatchNorm",
    "ConvNet",
    "External",
    "FlatNetwork",
    "LeNet",
    "Network",
    "NetworkFactory",
    "ResNet18",
    "Statistics",
    "ViT",
]

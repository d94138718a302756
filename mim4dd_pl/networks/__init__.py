"""Classifiers that can show their layers."""

from mim4dd_pl.networks.base import Network, NetworkFactory
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.networks.flat import FlatNetwork

__all__ = ["ConvNet", "FlatNetwork", "Network", "NetworkFactory"]

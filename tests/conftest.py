"""Inputs that several tests share. Everything is small and seeded."""

import signal
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.normalization import Normalization
from mim4dd_pl.data.sets import ImageSet
from mim4dd_pl.data.sources import Digits
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.networks.base import Network
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.population.experts import Experts
from mim4dd_pl.population.training import Training

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell has it for a job in the background: the programs that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the tests' networks are too small for two


@pytest.fixture
def stream() -> Stream:
    return Stream(0).at("tests")


@pytest.fixture
def network() -> FlatNetwork:
    """A ConvNet with 72 parameters on 1x4x4 images of 3 classes."""
    return FlatNetwork(partial(ConvNet, depth=1, width=4), (1, 4, 4), 3)


@pytest.fixture
def training() -> Training:
    return Training(epochs=3, batch_size=4, lr=0.1)


def randn(stream: Stream, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers of ``shape`` from ``stream``."""
    return torch.randn(*shape, generator=stream.generator(), dtype=dtype)


def tiny_overlay(path: Path, steps: int, every_n_steps: int = 50) -> None:
    """An overlay for the digits that leaves every organ in place and makes each as small as it can be."""
    training = {"epochs": 2}
    content = {
        "whole_set": False,
        "model": {"init_args": {"experts": {"num_experts": 1}, "objective": {"init_args": {"unroll_steps": 2}}}},
        "trainer": {
            "max_steps": steps,
            "val_check_interval": steps,
            "callbacks": [
                {"class_path": "Evaluation", "init_args": {"num_students": 2, "training": training}},
                {"class_path": "Export"},
                {"class_path": "ClosingTable"},
                {"class_path": "LastCheckpoint", "init_args": {"every_n_steps": every_n_steps}},
            ],
        },
    }
    path.write_text(yaml.safe_dump(content))


def to_module(network: FlatNetwork, theta: Tensor) -> Network:
    """The same network as a module with parameters of its own, which hold a copy of ``theta``."""
    module = network.factory(network.image_shape, network.num_classes)
    module.load_state_dict({name: part.clone() for name, part in network.unflatten(theta).items()})
    return module.to(theta)


@pytest.fixture
def real(stream: Stream) -> ImageSet:
    """Nine 1x4x4 images of three classes, four of the first, two of the last."""
    pixels = torch.randint(256, (9, 1, 4, 4), generator=stream.at("real").generator(), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1, 2, 2, 1, 0, 0])
    normalization = Normalization(torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.25], dtype=torch.float64))
    return ImageSet(pixels, torch.arange(9), labels, normalization, 3, "nine images")


@pytest.fixture(scope="module")
def data() -> ImageDataModule:
    """A hundred digits."""
    data = ImageDataModule(Digits(), max_train_images=100)
    data.setup()
    return data


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    """Two of two epochs, not trained yet."""
    return Experts(str(tmp_path_factory.mktemp("experts")), Training(epochs=2, batch_size=50, lr=0.05), num_experts=2)

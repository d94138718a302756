"""Experts as a job of their own, and on the way to a distillation."""

import logging
from pathlib import Path
from typing import cast

import lightning as L
import torch

from mim4dd_pl.data import ImageDataModule
from mim4dd_pl.errors import DivergenceError
from mim4dd_pl.evaluation import Classifiers
from mim4dd_pl.networks import FlatNetwork, NetworkFactory
from mim4dd_pl.population import Experts
from mim4dd_pl.shapes import ImageShape
from mim4dd_pl.trajectories import TrajectoryStore

_log = logging.getLogger(__name__)


def open_store(experts: Experts, network: FlatNetwork, data: ImageDataModule) -> TrajectoryStore:
    """The trajectories of ``experts`` on the training images of ``data``, as far as they exist."""
    return TrajectoryStore(Path(experts.root), experts.spec(network, data.source.name, data.train.fingerprint()))


def train_expert(
    expert: int,
    experts: Experts,
    store: TrajectoryStore,
    network: FlatNetwork,
    data: ImageDataModule,
    device: torch.device,
) -> float:
    """Train one expert, keep its trajectory, and return its accuracy on the validation images."""
    trajectory = experts.train(expert, network, data.train.to(device), device)
    if not torch.isfinite(trajectory).all():
        raise DivergenceError(f"Expert {expert + 1} diverged: lower model.experts.training.lr.")
    store.add(expert, trajectory)
    classifier = Classifiers(network, [trajectory[-1].to(device)])
    for batch in data.validation.to(device).batches(data.evaluation_batch_size):
        classifier.update(batch)
    accuracy = float(classifier.accuracies())
    _log.info("expert %d of %d: validation accuracy %.1f %%", expert + 1, experts.num_experts, 100 * accuracy)
    return accuracy


class ExpertModule(L.LightningModule):
    """Trains the experts of a recipe that its folder lacks, one per step, and keeps their trajectories.

    An expert that is finished is never trained again; an interrupted job keeps the finished ones.

    Args:
        network: Builds the architecture from (image_shape, num_classes).
        image_shape: (c, h, w) of one image; the data set sets it.
        num_classes: C; the data set sets it.
        experts: How many, how trained, where kept.
    """

    def __init__(self, network: NetworkFactory, image_shape: ImageShape, num_classes: int, experts: Experts) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = FlatNetwork(network, image_shape, num_classes)
        self.experts = experts

    def setup(self, stage: str) -> None:
        self.attach(cast(ImageDataModule, self.trainer.datamodule))  # type: ignore[attr-defined]

    def attach(self, data: ImageDataModule) -> None:
        """Open the folder; raises before anything is written if it holds other experts."""
        self.data = data
        self.store = open_store(self.experts, self.network, data)

    def on_fit_start(self) -> None:
        if not self.experts.missing(self.store):
            _log.info("All %d experts are in %s already.", self.experts.num_experts, self.experts.root)
            self.trainer.should_stop = True

    def training_step(self, batch: int, batch_idx: int) -> None:
        missing = self.experts.missing(self.store)
        if missing:
            accuracy = train_expert(missing[0], self.experts, self.store, self.network, self.data, self.device)
            self.log("experts/accuracy", accuracy, batch_size=1)
        if len(missing) <= 1:
            self.trainer.should_stop = True

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: an expert is validated when it is finished."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """None: an expert's own SGD is part of its recipe."""
        return []

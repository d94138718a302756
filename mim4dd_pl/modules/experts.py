"""Experts as a job of their own, and on the way to a distillation."""

import logging
from pathlib import Path
from typing import cast

import lightning as L
import torch

from mim4dd_pl.data import ImageDataModule
from mim4dd_pl.derivatives import Compile
from mim4dd_pl.errors import DivergenceError
from mim4dd_pl.evaluation import Classifiers, calibrated
from mim4dd_pl.networks import FlatNetwork, NetworkFactory
from mim4dd_pl.population import Experts, at_once
from mim4dd_pl.shapes import ImageShape
from mim4dd_pl.trajectories import TrajectoryStore

_log = logging.getLogger(__name__)


def open_store(experts: Experts, network: FlatNetwork, data: ImageDataModule) -> TrajectoryStore:
    """The trajectories of ``experts`` on the training images of ``data``, as far as they exist."""
    return TrajectoryStore(Path(experts.root), experts.spec(network, data.data_set, data.train.fingerprint()))


class ExpertTrainer:
    """Trains the experts that a store lacks, as many at once as the device takes, and keeps each when it is finished.

    Args:
        experts: Their recipe.
        store: Where they are kept.
        network: Their architecture.
        data: What they are trained on.
        device: Where.
        compile: Whether to compile their steps.
    """

    def __init__(
        self,
        experts: Experts,
        store: TrajectoryStore,
        network: FlatNetwork,
        data: ImageDataModule,
        device: torch.device,
        compile: Compile,
    ) -> None:
        self.experts, self.store, self.data, self.device = experts, store, data, device
        self.images = data.train.to(device)
        self.derivatives = experts.derivatives(network, self.images, compile, device)

    def train_some(self) -> list[float]:
        """Train the next ones; returns their accuracies on the validation images, none if no expert is missing."""
        numbers = self.experts.missing(self.store)[: at_once(self.device)]
        if not numbers:
            return []
        trajectories = self.experts.train(numbers, self.derivatives, self.images, self.device)
        diverged = [not bool(torch.isfinite(trajectory).all()) for trajectory in trajectories]
        for expert, trajectory, lost in zip(numbers, trajectories, diverged, strict=True):
            if not lost:
                self.store.add(expert, trajectory)
        if any(diverged):
            first = numbers[diverged.index(True)]
            raise DivergenceError(f"Expert {first + 1} diverged: lower model.experts.training.lr.")
        network, size = self.derivatives.network, self.experts.training.batch_size
        trained = list(trajectories[:, -1].to(self.device))
        classifiers = Classifiers(
            network, trained, [calibrated(network, theta, self.images, size) for theta in trained]
        )
        for batch in self.data.validation.to(self.device).batches(self.data.evaluation_batch_size):
            classifiers.update(batch)
        accuracies: list[float] = classifiers.accuracies().tolist()
        for expert, accuracy in zip(numbers, accuracies, strict=True):
            _log.info(
                "expert %d of %d: validation accuracy %.1f %%", expert + 1, self.experts.num_experts, 100 * accuracy
            )
        return accuracies


class ExpertModule(L.LightningModule):
    """Trains the experts that a folder lacks, one per step (ten on accelerators), and keeps their trajectories.

    An expert that is finished is never trained again; an interrupted job keeps the finished ones.

    Args:
        network: Builds the architecture from (image_shape, num_classes).
        image_shape: (c, h, w) of one image; the data set sets it.
        num_classes: C; the data set sets it.
        experts: How many, how trained, where kept.
        compile: Compile their steps: ``auto`` where that pays, ``true`` or ``false``.
    """

    def __init__(
        self,
        network: NetworkFactory,
        image_shape: ImageShape,
        num_classes: int,
        experts: Experts,
        compile: Compile = "auto",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = FlatNetwork(network, image_shape, num_classes)
        self.experts = experts
        self.needs_experts = True
        self.compiles: Compile = compile  # Module.compile is a method

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
            return
        self._training = ExpertTrainer(self.experts, self.store, self.network, self.data, self.device, self.compiles)

    def training_step(self, batch: int, batch_idx: int) -> None:
        if accuracies := self._training.train_some():
            self.log("experts/accuracy", sum(accuracies) / len(accuracies), batch_size=1)
        if not self.experts.missing(self.store):
            self.trainer.should_stop = True

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: an expert is validated when it is finished."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """None: an expert's own SGD is part of its recipe."""
        return []

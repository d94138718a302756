"""Experts as a job of their own, and on the way to a distillation."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from mim4dd_pl.basics.errors import DivergenceError, StoredFileError
from mim4dd_pl.basics.names import EXPERT_ACCURACY
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.sets import ImageSet
from mim4dd_pl.engine.compiled import Compile
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.lightning import datamodule_of
from mim4dd_pl.modules.share import added_up, own_share
from mim4dd_pl.networks.base import NetworkFactory
from mim4dd_pl.population.experts import Experts
from mim4dd_pl.population.students import Classifiers, calibrated
from mim4dd_pl.population.training import at_once
from mim4dd_pl.stored.trajectories import TrajectoryStore

_log = logging.getLogger(__name__)

_PATIENCE = 60.0
"""Seconds until what one node has written must be seen by the others."""


def open_store(experts: Experts, network: FlatNetwork, data: ImageDataModule) -> TrajectoryStore:
    """The trajectories of ``experts`` on the training images of ``data``, as far as they exist."""
    return TrajectoryStore(Path(experts.root), experts.spec(network, data.data_set, data.train.fingerprint()))


@dataclass
class ExpertTrainer:
    """Trains the experts that a store lacks, as many at once as the device takes, and keeps each when it is finished.

    Processes share the experts, and the folder in which they are kept.

    Args:
        experts: Their recipe.
        store: Where they are kept.
        network: Their architecture.
        data: What they are trained on.
        trainer: Whose device, and whose processes.
        compile: Whether to compile their steps.
    """

    experts: Experts
    store: TrajectoryStore
    network: FlatNetwork
    data: ImageDataModule
    trainer: L.Trainer
    compile: Compile

    @property
    def device(self) -> torch.device:
        device: torch.device = self.trainer.strategy.root_device
        return device

    @cached_property
    def images(self) -> ImageSet:
        return self.data.train.to(self.device)

    @cached_property
    def derivatives(self) -> Derivatives:
        return self.experts.derivatives(self.network, self.images, self.compile, self.device)

    def missing(self) -> list[int]:
        """Experts that are still to be trained, as process 0 sees it; all must ask.

        Another run may be filling the folder, and processes that look at it at different moments would disagree.
        """
        missing: list[int] = self.trainer.strategy.broadcast(self.experts.missing(self.store))
        self._await(set(range(self.experts.num_experts)).difference(missing))
        return missing

    def train_some(self) -> list[float]:
        """Train the next ones; returns their accuracies on the validation images, none if no expert is missing."""
        numbers = self.missing()[: at_once(self.device) * self.trainer.world_size]
        if not numbers:
            return []
        outcome = torch.zeros(len(numbers))
        if share := own_share(self.trainer, len(numbers)):
            outcome[list(share)] = self._train([numbers[place] for place in share])
        outcome = added_up(self.trainer, outcome)
        if diverged := [expert for expert, accuracy in zip(numbers, outcome, strict=True) if accuracy.isnan()]:
            raise DivergenceError(f"Expert {diverged[0] + 1} diverged: lower model.experts.training.lr.")
        self._await(numbers)
        accuracies: list[float] = outcome.tolist()
        for expert, accuracy in zip(numbers, accuracies, strict=True):
            count = self.experts.num_experts
            _log.info("expert %d of %d: validation accuracy %.1f %%", expert + 1, count, 100 * accuracy)
        return accuracies

    def _train(self, numbers: Sequence[int]) -> Tensor:
        """Train these and keep them; their accuracies, NaN for one that diverged."""
        trajectories = self.experts.train(numbers, self.derivatives, self.images, self.device)
        trained, size = list(trajectories[:, -1].to(self.device)), self.experts.training.batch_size
        statistics = [calibrated(self.network, theta, self.images, size) for theta in trained]
        classifiers = Classifiers(self.network, trained, statistics)
        for batch in self.data.validation.to(self.device).batches(self.data.evaluation_batch_size):
            classifiers.update(batch)
        finite = torch.stack([trajectory.isfinite().all() for trajectory in trajectories])
        for expert, trajectory, whole in zip(numbers, trajectories, finite, strict=True):
            if whole:
                self.store.add(expert, trajectory)
        return torch.where(finite, classifiers.accuracies(), torch.nan)

    def _await(self, numbers: Iterable[int]) -> None:
        """See what the other processes have kept; a network file system may show it late."""
        deadline = time.monotonic() + _PATIENCE
        while not set(numbers) <= set(self.store.finished):
            time.sleep(0.1)
            self.store.refresh()
            if time.monotonic() > deadline:
                raise StoredFileError(
                    f"Experts of other processes do not appear in {self.store.root}: all nodes must share "
                    "model.experts.root."
                )


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
        self.unused = nn.Parameter(torch.zeros(()))  # DistributedDataParallel takes no module without one

    def setup(self, stage: str) -> None:
        self.attach(datamodule_of(self.trainer))

    def attach(self, data: ImageDataModule) -> None:
        """Open the folder; raises before anything is written if it holds other experts."""
        self.data = data
        self.store = open_store(self.experts, self.network, data)

    def on_fit_start(self) -> None:
        self._training = ExpertTrainer(self.experts, self.store, self.network, self.data, self.trainer, self.compiles)
        if not self._training.missing():
            _log.info("All %d experts are in %s already.", self.experts.num_experts, self.experts.root)
            self.trainer.should_stop = True

    def training_step(self, batch: int, batch_idx: int) -> None:
        if accuracies := self._training.train_some():
            self.log(EXPERT_ACCURACY, sum(accuracies) / len(accuracies), batch_size=1)
        if not self._training.missing():
            self.trainer.should_stop = True

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: an expert is validated when it is finished."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """None: an expert's own SGD is part of its recipe."""
        return []

"""Fresh students on the synthetic images: accuracy on validation or test images, mean and std."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import lightning as L

from mim4dd_pl.callbacks.run import data_of, learned_set
from mim4dd_pl.data.sets import Batch, Indexable
from mim4dd_pl.engine.compiled import derivatives, worth_compiling
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.share import added_up, own_share
from mim4dd_pl.population.scores import Score, accuracies
from mim4dd_pl.population.students import Classifiers, train_students
from mim4dd_pl.population.training import Training
from mim4dd_pl.stored.distilled import Distilled


class Evaluation(L.Callback):
    """Trains students on the synthetic images whenever the Trainer validates or tests, and logs their accuracy.

    Logs ``validation/accuracy`` and ``validation/accuracy_std`` (or ``test/...``), fractions in [0, 1]; the std is
    over students, with the n - 1 of a sample. Every evaluation trains the same students (same initialisations, order
    and augmentation), so its course over a run shows the images and not the luck of the draw. Processes share the
    students.

    Args:
        training: How a student is trained.
        num_students: How many of each network, at least 2, so that there is a std.
        lrs: Instead of ``training.lr``: ``learned`` is the learning rate that was learned with the images (controls,
            which have none, keep ``training.lr``); several are tried, and the best on the validation images counts,
            for the distilled set and for random real images alike.

    Attributes:
        distilled: Evaluated in place of the module's images, if set.
        across: Other networks that a test trains as well.
    """

    def __init__(
        self,
        training: Training,
        num_students: int = 5,
        lrs: list[float] | Literal["learned"] | None = None,
    ) -> None:
        if num_students < 2:
            raise ValueError(f"Evaluation.num_students must be at least 2 (for a std), got {num_students}.")
        if isinstance(lrs, list) and not (lrs and all(0 < lr < math.inf for lr in lrs)):
            raise ValueError(f"Evaluation.lrs must be `learned` or positive learning rates, got {lrs}.")
        self.training = training
        self.num_students = num_students
        self.lrs = lrs
        self.distilled: Distilled | None = None
        self.across: Sequence[FlatNetwork] = ()
        self._compiles: dict[str, bool] = {}
        self._derivatives: dict[str, Derivatives] = {}

    def candidates(self, learned_lr: float | None = None) -> list[float]:
        """The learning rates that students are tried with on a set that may have learned one."""
        if isinstance(self.lrs, list):
            return self.lrs
        return [self.training.lr if learned_lr is None or self.lrs is None else learned_lr]

    def derivatives_for(
        self, module: DistillationModule, network: FlatNetwork, num_images: int, training: Training, times: int = 1
    ) -> Derivatives:
        """What trains the students of a run, so many ``times``, on sets of so many images; compiled once."""
        size = min(training.batch_size, num_images)
        key = f"{training.epochs} epochs of {num_images} images in batches of {size}, {network.name}"
        if key not in self._compiles:
            work = training.work(num_images, times * self.num_students)
            self._compiles[key] = worth_compiling(network, module.compiles, work)
        if key not in self._derivatives:
            self._derivatives[key] = derivatives(network, self._compiles[key], size, module.device)
        return self._derivatives[key]

    def times(self, trainer: L.Trainer) -> int:
        """How often a fit trains students on the synthetic images or as many real ones."""
        return len(self.candidates()) * (trainer.max_steps // max(int(trainer.val_check_interval), 1) + 4)

    # A checkpoint holds what was compiled, so that its test and its continuation compute as it did.

    def state_dict(self) -> dict[str, Any]:
        return dict(self._compiles)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._compiles = dict(state_dict)

    def train_students(
        self,
        module: DistillationModule,
        sets: Sequence[Indexable],
        training: Training | None = None,
        network: FlatNetwork | None = None,
        learned_lr: float | None = None,
        shared: bool = True,
    ) -> tuple[Classifiers, float]:
        """This process's share of the students, one on each of ``sets``, and the learning rate that was taken.

        All of them if they are not ``shared``. With another ``training`` than the callback's own, that one's learning
        rate is.
        """
        network = module.network if network is None else network
        times = self.times(module.trainer) if network is module.network and training is None else 1
        candidates = self.candidates(learned_lr) if training is None else [training.lr]
        training = training or self.training
        engine = self.derivatives_for(module, network, len(sets[0]), training, times)
        stream = module.stream.at("evaluation")
        share = own_share(module.trainer, len(sets)) if shared else None
        best: tuple[float, Classifiers, float] | None = None
        for lr in candidates:
            students = train_students(engine, sets, replace(training, lr=lr), stream, module.device, share)
            if len(candidates) == 1:
                return students, lr
            accuracy = self.validation_accuracy(module, students, shared)
            if best is None or accuracy > best[0]:
                best = accuracy, students, lr
        assert best is not None
        best[1].reset()
        return best[1], best[2]

    def score(
        self,
        module: DistillationModule,
        trained_on: str,
        sets: Sequence[Indexable],
        training: Training | None = None,
        network: FlatNetwork | None = None,
        learned_lr: float | None = None,
    ) -> Score:
        """Students on ``sets``, and what they make of the test images."""
        network = module.network if network is None else network
        students, lr = self.train_students(module, sets, training, network, learned_lr)
        data = data_of(module)
        for batch in data.test.to(module.device).batches(data.evaluation_batch_size):
            students.update(batch)
        confusion = added_up(module.trainer, students.confusion())
        return Score(trained_on, network.name, len(sets[0]), lr, confusion)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = cast(DistillationModule, pl_module)
        distilled = self.evaluated(module)
        sets = [distilled.training_set(module.device)] * self.num_students
        self._images = len(distilled.labels)
        self._students, self._lr = self.train_students(module, sets, learned_lr=float(distilled.student_lr))

    def evaluated(self, module: DistillationModule) -> Distilled:
        """The set that is evaluated."""
        return learned_set(module) if self.distilled is None else self.distilled

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._students.update(batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log("validation", cast(DistillationModule, pl_module))

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log("test", cast(DistillationModule, pl_module))

    def _log(self, stage: str, module: DistillationModule) -> None:
        confusion = added_up(module.trainer, self._students.confusion())
        score = Score("distilled", module.network.name, self._images, self._lr, confusion)
        self.latest = score
        module.log(f"{stage}/accuracy", score.mean)
        module.log(f"{stage}/accuracy_std", score.std)
        if module.trainer.state.fn != "fit":
            mean, std = 100 * score.mean, 100 * score.std
            print(f"{stage} accuracy {mean:.2f} +- {std:.2f} % ({len(score.confusion)} students)")

    @staticmethod
    def validation_accuracy(module: DistillationModule, students: Classifiers, shared: bool = True) -> float:
        """Mean accuracy of ``students`` on the validation images, none of which they have been shown yet.

        Of those of all processes if they are ``shared``.
        """
        data = data_of(module)
        for batch in data.validation.to(module.device).batches(data.evaluation_batch_size):
            students.update(batch)
        confusion = students.confusion()
        return float(accuracies(added_up(module.trainer, confusion) if shared else confusion).mean())

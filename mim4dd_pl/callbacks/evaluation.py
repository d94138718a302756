"""Fresh students on the synthetic images: accuracy on validation or test images, mean and std."""

from collections.abc import Sequence
from typing import Any, cast

import lightning as L

from mim4dd_pl.data.sets import Batch, Indexable, InMemory
from mim4dd_pl.derivatives import Derivatives, derivatives, worth_compiling
from mim4dd_pl.evaluation import Classifiers, train_students
from mim4dd_pl.modules import DistillationModule
from mim4dd_pl.population import Training


class Evaluation(L.Callback):
    """Trains students on the synthetic images whenever the Trainer validates or tests, and logs their accuracy.

    Logs ``validation/accuracy`` and ``validation/accuracy_std`` (or ``test/...``), fractions in [0, 1]; the std is
    over students, with the n - 1 of a sample. Every evaluation trains the same students (same initialisations, order
    and augmentation), so its course over a run shows the images and not the luck of the draw.

    Args:
        training: How a student is trained.
        num_students: How many, at least 2, so that there is a std.
    """

    def __init__(self, training: Training, num_students: int = 5) -> None:
        if num_students < 2:
            raise ValueError(f"Evaluation.num_students must be at least 2 (for a std), got {num_students}.")
        self.training = training
        self.num_students = num_students
        self._compiles: dict[str, bool] = {}
        self._derivatives: dict[str, Derivatives] = {}

    def derivatives_for(self, module: DistillationModule, num_images: int, training: Training) -> Derivatives:
        """What trains the students of a run on sets of so many images; compiled once."""
        key = f"{training} on {num_images}"
        if key not in self._compiles:
            trainer = module.trainer
            times = trainer.max_steps // max(int(trainer.val_check_interval), 1) + 3 if training == self.training else 1
            work = training.work(num_images, times * self.num_students)
            self._compiles[key] = worth_compiling(module.network, module.compiles, work)
        if key not in self._derivatives:
            size = min(training.batch_size, num_images)
            self._derivatives[key] = derivatives(module.network, self._compiles[key], size, module.device)
        return self._derivatives[key]

    # A checkpoint holds what was compiled, so that its test and its continuation compute as it did.

    def state_dict(self) -> dict[str, Any]:
        return dict(self._compiles)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._compiles = dict(state_dict)

    def train_students(self, module: DistillationModule, sets: Sequence[Indexable], training: Training) -> Classifiers:
        """The students of this evaluation, one on each of ``sets``, trained as ``training`` says."""
        engine = self.derivatives_for(module, len(sets[0]), training)
        return train_students(engine, sets, training, module.stream.at("evaluation"), module.device)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = cast(DistillationModule, pl_module)
        synthetic = InMemory(module.synthetic.images.detach(), module.synthetic.labels)
        self._students = self.train_students(module, [synthetic] * self.num_students, self.training)

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
        self._log("validation", pl_module)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log("test", pl_module)

    def _log(self, stage: str, module: L.LightningModule) -> None:
        accuracies = self._students.accuracies()
        module.log(f"{stage}/accuracy", accuracies.mean())
        module.log(f"{stage}/accuracy_std", accuracies.std())
        if module.trainer.state.fn != "fit":
            mean, std = 100 * float(accuracies.mean()), 100 * float(accuracies.std())
            print(f"{stage} accuracy {mean:.2f} +- {std:.2f} % ({len(accuracies)} students)")

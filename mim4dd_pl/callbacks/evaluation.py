"""Fresh students on the synthetic images: accuracy on validation or test images, mean and std."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import lightning as L

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.names import DISTILLED, accuracy_of, accuracy_std_of
from mim4dd_pl.callbacks.run import learned_set
from mim4dd_pl.data.sets import Batch
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.lightning import datamodule_of
from mim4dd_pl.modules.share import added_up, own_share
from mim4dd_pl.population.evaluator import Evaluator, LearningRates, Protocol
from mim4dd_pl.population.training import Training
from mim4dd_pl.stored.distilled import Distilled


class Evaluation(L.Callback):
    """Trains students on the synthetic images whenever the Trainer validates or tests, and logs their accuracy.

    During a fit fewer students and epochs may do, all else the same. Then all validations of the fit are by this
    cheaper protocol, the last one too, and so is the choice of the best set; the closing table, an analysis,
    ``validate`` and ``test`` are by the full one.

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
        during_students: In place of ``num_students`` at the validations of a fit, at least 2.
        during_epochs: Likewise of the epochs of ``training``.

    Attributes:
        distilled: Evaluated in place of the module's images, if set.
        across: Other networks that a test trains as well.
        protocol: The full one.
        during: That of the validations of a fit.
        evaluator: What trains and scores students by ``protocol``, for other callbacks too.
        validator: The same by ``during``.
        latest: The score of the last validation or test.
    """

    def __init__(
        self,
        training: Training,
        num_students: int = 5,
        lrs: LearningRates = None,
        during_students: int | None = None,
        during_epochs: int | None = None,
    ) -> None:
        for name, count in {"num_students": num_students, "during_students": during_students}.items():
            if count is not None and count < 2:
                raise ValueError(f"{name} must be at least 2 (for a std), got {count}.")
        check_positive(during_epochs=during_epochs)
        if isinstance(lrs, list) and not (lrs and all(0 < lr < math.inf for lr in lrs)):
            raise ValueError(f"lrs must be `learned` or positive learning rates, got {lrs}.")
        self.protocol = Protocol(training, num_students, lrs)
        shorter = replace(training, epochs=during_epochs or training.epochs)
        self.during = Protocol(shorter, during_students or num_students, lrs)
        self.distilled: Distilled | None = None
        self.across: Sequence[FlatNetwork] = ()
        self._compiled: dict[str, bool] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.attach(trainer, cast(DistillationModule, pl_module), datamodule_of(trainer))

    def attach(self, trainer: L.Trainer, module: DistillationModule, data: ImageDataModule) -> None:
        """Get ready to train the students of a run; its processes share them."""
        device, size = trainer.strategy.root_device, data.evaluation_batch_size
        validations = trainer.max_steps // max(int(trainer.val_check_interval), 1)
        # A table and an analysis at the end train on the synthetic images, or as many real ones, as well.
        epochs = validations * self.during.epochs + 4 * self.protocol.epochs
        times = [-(-epochs // (each.num_students * each.training.epochs)) for each in (self.protocol, self.during)]
        self.evaluator = Evaluator(
            self.protocol,
            module.trained_network,
            module.stream.at("evaluation"),
            device,
            test_images=lambda: data.test.to(device).batches(size),
            validation_images=lambda: data.validation.to(device).batches(size),
            compile=module.compiles,
            times=times[0],
            share=partial(own_share, trainer),
            added_up=partial(added_up, trainer),
            compiled=self._compiled,
        )
        self.validator = replace(self.evaluator, protocol=self.during, times=times[1])

    # A checkpoint holds what was compiled, so that its test and its continuation compute as it did.

    def state_dict(self) -> dict[str, Any]:
        return dict(self._compiled)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._compiled.clear()
        self._compiled.update(state_dict)

    def evaluated(self, module: DistillationModule) -> Distilled:
        """The set that is evaluated."""
        return learned_set(module) if self.distilled is None else self.distilled

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        evaluator = self.validator if trainer.state.fn == "fit" else self.evaluator
        self._students = evaluator.train_on(self.evaluated(cast(DistillationModule, pl_module)))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._students.classifiers.update(batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stage = "test" if trainer.testing else "validation"
        self.latest = score = self.evaluator.score(DISTILLED, self._students)
        pl_module.log(accuracy_of(stage), score.mean)
        pl_module.log(accuracy_std_of(stage), score.std)
        if trainer.state.fn != "fit":
            mean, std = 100 * score.mean, 100 * score.std
            print(f"{stage} accuracy {mean:.2f} +- {std:.2f} % ({len(score.confusion)} students)")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]  # its last two arguments are not read
    on_test_epoch_end = on_validation_epoch_end

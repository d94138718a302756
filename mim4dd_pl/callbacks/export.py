"""Best and last distilled set as artefacts."""

from typing import Any, cast

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from mim4dd_pl.basics.files import restore
from mim4dd_pl.basics.names import VALIDATION_ACCURACY, VALIDATION_STD
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.run import find, learned_set, run_folder
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.stored.artefact import write_distilled
from mim4dd_pl.stored.distilled import sheet


class Export(L.Callback):
    """Writes ``distilled/last`` at every validation during a fit, and ``distilled/best`` at the best so far.

    Best is by ``validation/accuracy``, see ``data.validate_on``. Each folder is whole at any time.

    Args:
        tensors: Add ``images.pt``, ``labels.pt`` and ``lr.pt``, which evaluators of other codebases read.
    """

    def __init__(self, tensors: bool = False) -> None:
        self.tensors = tensors
        self.best_accuracy = float("-inf")
        self.best_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        best = run_folder(trainer).distilled("best")
        if trainer.is_global_zero:
            restore(best)
        if not trainer.strategy.broadcast(best.exists()):
            # A checkpoint that was moved away from its run: the best of this folder is still to come.
            self.best_accuracy = float("-inf")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        module = cast(DistillationModule, pl_module)
        accuracy, std = (float(trainer.callback_metrics[name]) for name in (VALIDATION_ACCURACY, VALIDATION_STD))
        evaluation = find(trainer, Evaluation)
        during, by = evaluation.during, ""
        if during != evaluation.protocol:
            by = f" ({during.num_students} students of {during.training.epochs} epochs)"
        distilled = learned_set(
            module,
            validation_accuracy=f"{accuracy:.4f} +- {std:.4f}{by}",
            students=repr(evaluation.protocol.training),
        )
        run, folders = run_folder(trainer), ["last"]
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_step = accuracy, trainer.global_step
            folders.append("best")
        for name in folders if trainer.is_global_zero else ():
            write_distilled(run.distilled(name), distilled, self.tensors)

    def state_dict(self) -> dict[str, Any]:
        return {"best_accuracy": self.best_accuracy, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_accuracy = state_dict["best_accuracy"]
        self.best_step = state_dict["best_step"]


class Pictures(L.Callback):
    """A grid of the synthetic images and a histogram of their pixels, at every validation during a fit."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        module = cast(DistillationModule, pl_module)
        grid = sheet(learned_set(module))
        pixels = module.synthetic.result.flatten()
        some = pixels[:: 1 + len(pixels) // 1_000_000]  # as many as a histogram needs
        step = trainer.global_step - 1  # Lightning counts the scalars of the same moment from zero
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("synthetic/images", grid, step)
                logger.experiment.add_histogram("synthetic/pixels", some, step)

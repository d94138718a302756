"""Diagnostics that speak: what goes wrong in a fit is said once, in one line, with the setting to turn."""

import json
import logging
from collections import deque
from typing import Any, cast

import lightning as L
from torch import Tensor

from mim4dd_pl.basics.files import write_text
from mim4dd_pl.basics.names import MATCHING_LOSS, STUDENT_LR, TRAIN, VALIDATION_ACCURACY, diagnostic
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.run import data_of, find, random_sets, run_folder
from mim4dd_pl.diagnostics.base import Values, window_length
from mim4dd_pl.diagnostics.images import image_distances
from mim4dd_pl.diagnostics.progress import RANDOM_ACCURACY, STUDENT_LR_FLOOR, loss_course
from mim4dd_pl.diagnostics.symptoms import SYMPTOMS
from mim4dd_pl.modules.distillation import DistillationModule

_log = logging.getLogger(__name__)

_SHOWN = 10  # images of a class whose distances are measured: enough to see them collapse


class Diagnostics(L.Callback):
    """Follows a fit and says what is wrong with it: once for each symptom, with the setting to turn.

    Each symptom (``mim4dd_pl.symptoms``) logs one number as ``diagnostics/<name>``. Those that fired are kept with
    their step in the run's ``diagnostics.json``; a resumed run goes on where it was and says nothing twice.

    Args:
        every_n_steps: Outer steps between two readings.
        baseline: At the first validation of a fit, train students on random real images as well, as many as are
            learned, to know whether distilled ones do better on the validation images. It costs one more evaluation;
            none is made where ``data.validate_on`` is ``test``.

    Attributes:
        fired: Name, step, value and message of each symptom that fired.
    """

    def __init__(self, every_n_steps: int = 10, baseline: bool = True) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.baseline = baseline
        self.fired: list[dict[str, Any]] = []
        self._start: dict[str, float] = {}
        self._courses: dict[str, list[float]] = {symptom.name: [] for symptom in SYMPTOMS}
        self._losses: deque[float | Tensor] = deque()
        self._random_real: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._file = run_folder(trainer).diagnostics  # now, while all processes ask
        self._window = window_length(trainer.max_steps, self.every_n_steps)
        self._losses = deque(self._losses, self._window * self.every_n_steps)
        if not self._start:
            module = cast(DistillationModule, pl_module)
            self._start = {STUDENT_LR: float(module.synthetic.student_lr.detach()), **self._images(module)}
        self._write(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        module = cast(DistillationModule, pl_module)
        if module.state.skips.in_row == 0:  # a skipped step has no loss
            # A tensor: on an accelerator only a reading waits for it.
            self._losses.append(trainer.callback_metrics[MATCHING_LOSS].detach().clone())
        if self._losses and (step == 1 or step % self.every_n_steps == 0):
            logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(TRAIN)}
            losses = [float(loss) for loss in self._losses]
            self._losses = deque(losses, self._losses.maxlen)
            course = loss_course(losses, self.every_n_steps)
            floor = {STUDENT_LR_FLOOR: module.synthetic.min_student_lr}
            self._read(trainer, {**logged, **course, **floor, **self._images(module)})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or not self.baseline or VALIDATION_ACCURACY not in trainer.callback_metrics:
            return
        module = cast(DistillationModule, pl_module)
        if data_of(module).validate_on == "test":
            return
        if self._random_real is None:
            self._random_real = self._baseline(module)
        accuracy = float(trainer.callback_metrics[VALIDATION_ACCURACY])
        self._read(trainer, {VALIDATION_ACCURACY: accuracy, RANDOM_ACCURACY: self._random_real})

    def state_dict(self) -> dict[str, Any]:
        return {
            "fired": self.fired,
            "start": self._start,
            "courses": self._courses,
            "losses": [float(loss) for loss in self._losses],
            "random_real": self._random_real,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fired = list(state_dict["fired"])
        self._start = dict(state_dict["start"])
        self._courses.update(state_dict["courses"])
        self._losses = deque(state_dict["losses"])
        self._random_real = state_dict["random_real"]

    def _read(self, trainer: L.Trainer, now: Values) -> None:
        """Measure all symptoms in one reading, log them, and speak of those that are new."""
        self._start = {**now, **self._start}
        measured = {symptom: symptom.measured(now, self._start) for symptom in SYMPTOMS}
        known = {symptom: value for symptom, value in measured.items() if value is not None}
        for symptom, value in known.items():
            course = self._courses[symptom.name]
            course.append(value)
            if symptom.name not in {each["name"] for each in self.fired} and symptom.fires(course, self._window):
                message = symptom.message(value)
                self.fired.append(
                    {"name": symptom.name, "step": trainer.global_step, "value": value, "message": message}
                )
                _log.warning("Diagnostics, step %d: %s", trainer.global_step, message)
                self._write(trainer)
        logged = {diagnostic(symptom.name): value for symptom, value in known.items()}
        for logger in trainer.loggers:
            logger.log_metrics(logged, trainer.global_step - 1)  # Lightning counts its scalars from zero

    def _images(self, module: DistillationModule) -> dict[str, float]:
        synthetic = module.synthetic
        per_class = slice(min(_SHOWN, synthetic.images_per_class))
        groups = (-1, synthetic.images_per_class)
        images = synthetic.images.detach().unflatten(0, groups)[:, per_class].flatten(0, 1)
        return image_distances(images, synthetic.labels.unflatten(0, groups)[:, per_class].flatten())

    def _baseline(self, module: DistillationModule) -> float:
        """Mean validation accuracy of students of random real images, each of its own draw."""
        evaluator = find(module.trainer, Evaluation).evaluator
        draws = random_sets(module, len(module.synthetic), evaluator.protocol.num_students)
        return evaluator.validation_accuracy(evaluator.train(draws))

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            write_text(self._file, json.dumps(self.fired, indent=2) + "\n")

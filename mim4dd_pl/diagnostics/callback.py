"""Diagnostics that speak: what goes wrong in a fit is said once, in one line, with the setting to turn."""

import json
import logging
from collections import deque
from typing import Any, cast

import lightning as L
from torch import Tensor

from mim4dd_pl.basics import names
from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.files import write_text
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.run import data_of, find, random_sets, run_folder
from mim4dd_pl.diagnostics import readings
from mim4dd_pl.diagnostics.readings import Values
from mim4dd_pl.diagnostics.symptoms import SYMPTOMS
from mim4dd_pl.modules.distillation import DistillationModule

_log = logging.getLogger(__name__)

_SHOWN = 10  # images of a class whose distances are measured: enough to see them collapse


class Diagnostics(L.Callback):
    """Follows a fit and says what is wrong with it: once for each symptom, with the setting to turn.

    Each symptom (:mod:`mim4dd_pl.diagnostics.symptoms`) logs one number as ``diagnostics/<name>``. Those that fired are
    kept with their step in the run's ``diagnostics.json``; a resumed run says nothing twice.

    Args:
        every_n_steps: Outer steps between two readings.
        baseline: At the first validation of a fit, train students on random real images as well, as many as are
            learned, to know whether distilled ones do better on the validation images. It costs one more evaluation;
            none is made where ``data.validate_on`` is ``test``.

    Attributes:
        fired: Name, step, value and message of each symptom that fired.
    """

    def __init__(self, every_n_steps: int = 10, baseline: bool = True) -> None:
        check_positive(every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.baseline = baseline
        self.fired: list[dict[str, Any]] = []
        self._start: dict[str, float] = {}
        self._courses: dict[str, list[float]] = {symptom.name: [] for symptom in SYMPTOMS}
        self._losses: deque[float | Tensor] = deque()
        self._random_real: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._file = run_folder(trainer).diagnostics  # now, while all processes ask
        self._window = readings.window_length(trainer.max_steps, self.every_n_steps)
        self._losses = deque(self._losses, self._window * self.every_n_steps)
        if not self._start:
            module = cast(DistillationModule, pl_module)
            self._start = {names.STUDENT_LR: float(module.synthetic.student_lr.detach()), **self._images(module)}
        self._write(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        module = cast(DistillationModule, pl_module)
        if module.state.in_row == 0:  # a skipped step has no loss
            # A tensor: on an accelerator only a reading waits for it.
            self._losses.append(trainer.callback_metrics[names.MATCHING_LOSS].detach().clone())
        if self._losses and (step == 1 or step % self.every_n_steps == 0):
            logged = {
                name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(names.TRAIN)
            }
            losses = [float(loss) for loss in self._losses]
            self._losses = deque(losses, self._losses.maxlen)
            course = readings.loss_course(losses, self.every_n_steps)
            floor = {readings.STUDENT_LR_FLOOR: module.synthetic.min_student_lr}
            self._read(trainer, {**logged, **course, **floor, **self._images(module)})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or not self.baseline or names.VALIDATION_ACCURACY not in trainer.callback_metrics:
            return
        module = cast(DistillationModule, pl_module)
        if data_of(module).validate_on == "test":
            return
        evaluator = find(trainer, Evaluation).validator
        students = evaluator.protocol.num_students
        if not self._random_real:  # as many images, another draw for each student
            random = evaluator.train(random_sets(module, len(module.synthetic.labels), students))
            score = evaluator.validate(names.RANDOM, random)
            self._random_real = {readings.RANDOM_ACCURACY: score.mean, readings.RANDOM_STD: score.std}
        learned = {
            name: float(trainer.callback_metrics[name]) for name in (names.VALIDATION_ACCURACY, names.VALIDATION_STD)
        }
        self._read(trainer, {**learned, **self._random_real, readings.STUDENTS: students})

    def state_dict(self) -> dict[str, Any]:
        return {
            "fired": self.fired,
            "start": self._start,
            "courses": self._courses,
            "losses": [float(loss) for loss in self._losses],
            "random_real": self._random_real,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fired, self._start = list(state_dict["fired"]), dict(state_dict["start"])
        self._courses.update(state_dict["courses"])
        self._losses = deque(state_dict["losses"])
        random = state_dict["random_real"]
        self._random_real = random if isinstance(random, dict) else {}  # a mean without std, before: found again

    def _read(self, trainer: L.Trainer, now: Values) -> None:
        """Measure all symptoms in one reading, log them, and speak of those that are new."""
        self._start = {**now, **self._start}
        logged = {}
        for symptom in SYMPTOMS:
            if (value := symptom.measured(now, self._start)) is None:
                continue
            logged[names.diagnostic(symptom.name)] = value
            course = self._courses[symptom.name]
            course.append(value)
            said = any(each["name"] == symptom.name for each in self.fired)
            if not said and symptom.fires(course, self._window, now):
                step, message = trainer.global_step, symptom.message(value)
                self.fired.append({"name": symptom.name, "step": step, "value": value, "message": message})
                _log.warning("Diagnostics, step %d: %s", step, message)
                self._write(trainer)
        for logger in trainer.loggers:
            logger.log_metrics(logged, trainer.global_step - 1)  # Lightning counts its scalars from zero

    def _images(self, module: DistillationModule) -> dict[str, float]:
        groups, decoded = (-1, module.synthetic.decoded_per_class), module.synthetic.decoded()
        some = (
            each.detach().unflatten(0, groups)[:, :_SHOWN].flatten(0, 1) for each in (decoded.images, decoded.labels)
        )
        return readings.image_distances(*some)

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            write_text(self._file, json.dumps(self.fired, indent=2) + "\n")

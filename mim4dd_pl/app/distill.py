"""A whole distillation as one call, for scripts and notebooks."""

import json
from pathlib import Path
from typing import Any

from mim4dd_pl.app.cli import DistillationCLI
from mim4dd_pl.app.named import recipe_path
from mim4dd_pl.app.processes import Launch
from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.basics.terminal import quiet
from mim4dd_pl.callbacks.preemption import answering_signals


def distill(recipe: str | Path, *overlays: str | Path, steps: int | None = None, **settings: Any) -> Path:
    """Distil as ``mim4dd fit`` does, in this process, and return where the best distilled set is.

    It prints what the program prints, and leaves the same run folder behind; missing experts are trained first. ::

        folder = distill("digits", "with/mutual_information", steps=100, **{"model.lr_images": 3.0})
        data = DistilledDataset(folder)

    Args:
        recipe: A file, or the name of a recipe that comes with the package, e.g. ``digits``.
        overlays: Files or names of overlays, applied in order.
        steps: Outer steps in place of the recipe's, evaluated once, after the last of them.
        settings: Values by dotted keys, as on the command line of ``mim4dd fit``.

    Returns:
        The folder of the artefact, which :class:`~mim4dd_pl.stored.dataset.DistilledDataset` reads.

    Raises:
        UserError: If a setting is wrong; its subclasses if data, experts or checkpoints are, or the run diverges.
    """
    changed: dict[str, Any] = {} if steps is None else {"trainer.max_steps": steps, "trainer.val_check_interval": steps}
    changed |= settings
    arguments = ["fit", *(f"--config={recipe_path(str(file))}" for file in (recipe, *overlays))]
    arguments += [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()]
    quiet()
    with answering_signals() as preemption:
        try:
            program = DistillationCLI(arguments, preemption)
        except Launch:
            raise UserError("distill works in one process: set trainer.devices to 1, or use mim4dd fit.") from None
    return RunFolder(Path(program.trainer.log_dir or program.trainer.default_root_dir)).distilled("best")

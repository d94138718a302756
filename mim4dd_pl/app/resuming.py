"""Which run a fit goes on with, and that no two fits share one."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from mim4dd_pl.app.recipes import settings_of, short_classes
from mim4dd_pl.basics.errors import StoredFileError, UserError
from mim4dd_pl.basics.files import locked
from mim4dd_pl.basics.identity import YOUNG
from mim4dd_pl.basics.names import row_curve
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.callbacks.checkpoint_io import AtomicCheckpointIO
from mim4dd_pl.callbacks.closing import ClosingTable
from mim4dd_pl.callbacks.run import run_folder
from mim4dd_pl.modules.lightning import callbacks_of

_log = logging.getLogger(__name__)

_CHANGEABLE = (
    "model.lr_images",
    "model.lr_student_lr",
    "model.min_student_lr",
    "model.momentum",
    "model.objective",
    "model.segments_per_step",
    "model.information.weight",
    "model.information.real_batch_size",
    "model.soft_labels.lr",
)
"""Settings that take effect in a run that goes on; the others say how a run starts or what its checkpoint holds."""


def _named(key: str, names: Sequence[str]) -> bool:
    """Whether ``key`` or a key above it is among ``names``."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


class KeepRecipe(SaveConfigCallback):
    """Keeps the recipe: as ``config.yaml`` in the folder of a run, and in each checkpoint, which resuming compares."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.logger is not None:
            # As a recipe, config.yaml repeats a run, in a folder of its own, and does not go on with it.
            self.config.ckpt_path = None
            if (logger := getattr(self.config.trainer.logger, "init_args", None)) is not None and "version" in logger:
                logger.version = None
            super().setup(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        return settings_of(self.parser, self.config)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settings and results of a finished run side by side, for TensorBoard's HPARAMS page."""
        scores = [score for table in callbacks_of(trainer, ClosingTable) for score in table.scores]
        if stage == "fit" and scores and isinstance(trainer.logger, TensorBoardLogger):
            accuracies = {row_curve(score.network, score.trained_on): score.mean for score in scores}
            trainer.logger.log_hyperparams(self.state_dict(), accuracies)


def difference(checkpoint: dict[str, Any], settings: dict[str, Any], changes: Sequence[str] = ()) -> str | None:
    """What keeps a checkpoint from going on with these settings, in words; None if nothing does.

    Args:
        checkpoint: As it was read.
        settings: Of the recipe at hand, from :func:`~mim4dd_pl.app.recipes.settings_of`.
        changes: Settings that may differ.
    """
    kept = checkpoint.get("callbacks", {}).get(KeepRecipe.__qualname__) if isinstance(checkpoint, dict) else None
    if kept is None or not {"state_dict", "optimizer_states", "loops", "global_step"} <= checkpoint.keys():
        return "is no checkpoint of `mim4dd fit`"
    kept = short_classes(kept)
    for key in sorted(kept.keys() | settings.keys()):
        before = YOUNG.get(key.rpartition(".")[2], "none")
        then, now, name = kept.get(key, before), settings.get(key, "none"), key.replace(".init_args", "")
        if then != now and not _named(name, changes):
            return f"was made with {name} {then}, this recipe has {now}"
    return None


@contextmanager
def own_folder(trainer: L.Trainer, ckpt_path: str | None) -> Iterator[None]:
    """Hold the run's folder for this fit alone while the block runs; two new runs never take the same number.

    Args:
        trainer: Of the fit.
        ckpt_path: What the fit goes on from, if anything.

    Raises:
        StoredFileError: If another fit holds it, or it holds another run.
    """
    with ExitStack() as stack:
        with locked(Path(getattr(trainer.logger, "save_dir", None) or trainer.default_root_dir), "runs"):
            run = run_folder(trainer)  # the logger takes the next free number
            try:
                stack.enter_context(locked(run.path, waits=False))
            except BlockingIOError:
                raise StoredFileError(
                    f"{run.path} is in use by another `mim4dd fit`: wait for its end, or start a new run."
                ) from None
        goes_on = ckpt_path is not None and RunFolder.of_checkpoint(Path(ckpt_path)).path == run.path.resolve()
        if not goes_on and run.checkpoint("last").exists():
            raise StoredFileError(
                f"{run.path} holds a run: go on with it by --ckpt_path last, or choose another trainer.logger."
            )
        yield


def check_data(checkpoint: dict[str, Any], path: str, found: dict[str, str]) -> None:
    """Refuse to go on from a checkpoint with other images or labels than it was made with.

    Args:
        checkpoint: As it was read.
        path: Where it lies.
        found: Fingerprints of the data at hand.

    Raises:
        StoredFileError: Says which.
    """
    if (made := checkpoint.get("data")) is None:  # it is older than the record
        _log.info("%s does not say which images it was made with: that they are these is not checked.", path)
    elif odd := [split for split in found if made.get(split) != found[split]]:
        raise StoredFileError(
            f"{path} was made with other {' and '.join(odd)} images or labels than the recipe finds now: point "
            "data.source at those, name the checkpoint of a run on these in --ckpt_path, or start a new run. What was "
            "learned is evaluated on other data by --distilled."
        )


def continue_run(config: Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Find a checkpoint of this very recipe, and go on in the folder of its run.

    ``last`` and ``best`` are those of the newest run of the recipe; runs with other settings may lie beside it.

    Args:
        config: Of the fit, whose ``ckpt_path`` and version this completes.
        settings: Of its recipe, from :func:`~mim4dd_pl.app.recipes.settings_of`.

    Returns:
        The checkpoint.

    Raises:
        UserError: If the changes that it allows are of settings which a run cannot change on its way.
        StoredFileError: If there is none, or it was made with other settings.
    """
    logger = getattr(config.trainer.logger, "init_args", None)
    runs = Path(logger.save_dir) / (logger.name or "") if logger is not None else None
    candidates = [Path(config.ckpt_path)]
    if (which := config.ckpt_path) in ("last", "best"):
        if runs is None:
            raise UserError(f"--ckpt_path {which} needs trainer.logger with a save_dir; give a .ckpt file instead.")
        candidates = [path for run in RunFolder.versions(runs) if (path := run.checkpoint(which)).is_file()]
        if not candidates:
            raise StoredFileError(
                f"No run to resume in {runs}: none has checkpoints/{which}.ckpt. Start one without --ckpt_path."
            )
    changes = [name for name in config.allow_changes.split(",") if name]
    if fixed := [name for name in changes if not _named(name, _CHANGEABLE)]:
        raise UserError(
            f"allow_changes takes {', '.join(_CHANGEABLE)}, got {fixed[0]}: for another setting start a new run."
        )
    first = None
    for path in candidates:
        checkpoint: dict[str, Any] = AtomicCheckpointIO().load_checkpoint(path)
        reason = difference(checkpoint, settings, changes)
        if reason is None:
            break
        first = first or f"{path} {reason}"
    else:
        raise StoredFileError(
            f"{first}: go on with the setting of the checkpoint, name it in --allow_changes, or start a new run "
            "without --ckpt_path."
        )
    config.ckpt_path = str(path)
    run = RunFolder.of_checkpoint(path)
    if runs is not None and run.path.parent == runs.resolve() and run.version is not None:
        config.trainer.logger.init_args.version = run.version
    return checkpoint

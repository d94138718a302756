"""Lightning's Trainer with the commands of the program: ``check``, and what ``validate`` and ``test`` evaluate."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from mim4dd_pl.analysis.callback import Analysis
from mim4dd_pl.app.estimate import estimate, show
from mim4dd_pl.app.resuming import own_folder
from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.basics.files import check_room
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.callbacks.checkpoint_io import AtomicCheckpointIO
from mim4dd_pl.callbacks.closing import ClosingTable
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.run import find, run_folder
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.experts import ExpertModule
from mim4dd_pl.modules.lightning import callbacks_of, keep_history
from mim4dd_pl.networks.base import NetworkFactory
from mim4dd_pl.stored.distilled import Distilled
from mim4dd_pl.stored.foreign import read_set

_log = logging.getLogger(__name__)


class Trainer(L.Trainer):
    """Each public method is a command, each of its arguments an option; model and datamodule are the recipe's."""

    def fit(  # type: ignore[override]
        self, model: L.LightningModule, datamodule: ImageDataModule, ckpt_path: str | None = None
    ) -> None:
        """Runs the full optimization routine.

        Args:
            ckpt_path: ``last``, ``best``, or a checkpoint of the recipe, from which the run resumes.
        """
        writes = self.loggers or isinstance(model, DistillationModule)  # experts alone may be shared
        with own_folder(self, ckpt_path) if writes and self.is_global_zero else nullcontext():
            for logger in self.loggers if self.is_global_zero else ():
                if isinstance(logger, CSVLogger):
                    made = AtomicCheckpointIO().load_checkpoint(ckpt_path)["global_step"] if ckpt_path else 0
                    keep_history(logger, made)
            super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)

    def check(self, model: L.LightningModule, datamodule: ImageDataModule, compiled: bool = False) -> None:
        """Check a recipe and estimate minutes, memory and disk of its ``fit``; writes nothing but decoded images.

        Args:
            compiled: Measure compiled steps where the run compiles: that takes minutes, which the run then saves.

        Raises:
            StoredFileError: If a disk has no room for what the run writes.
        """
        experts = Path(cast(DistillationModule | ExpertModule, model).experts.root)
        expected = estimate(self, model, datamodule, compiled)
        show(expected, self.strategy.root_device, experts, self.world_size)
        run = run_folder(self).path
        check_room({experts: round(2**30 * expected.experts), run: round(2**30 * expected.run)})

    def validate(  # type: ignore[override]
        self,
        model: L.LightningModule,
        datamodule: ImageDataModule,
        ckpt_path: str | None = None,
        distilled: str | None = None,
    ) -> Any:
        """Fresh students on a distilled set, classifying the validation images.

        Args:
            ckpt_path: ``last``, ``best``, or a checkpoint of the recipe, whose images are evaluated.
            distilled: In its place, an artefact, images.pt and labels.pt, DC's res_*.pt, or class folders of pictures.
        """
        self._use(datamodule, distilled)
        return super().validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)

    def test(  # type: ignore[override]
        self,
        model: L.LightningModule,
        datamodule: ImageDataModule,
        ckpt_path: str | None = None,
        distilled: str | None = None,
        across: list[NetworkFactory] | None = None,
        results: str | None = None,
    ) -> Any:
        """Fresh students on a distilled set beside its controls, classifying the test images.

        Args:
            ckpt_path: ``last``, ``best``, or a checkpoint of the recipe, whose images are evaluated.
            distilled: In its place, an artefact, images.pt and labels.pt, DC's res_*.pt, or class folders of pictures.
            across: Other networks to train on the set as well.
            results: A folder for results.json and results.csv, and for what Analysis finds.
        """
        if not callbacks_of(self, ClosingTable) and (across or results):
            raise UserError("across and results speak of the closing table: add ClosingTable to trainer.callbacks.")
        evaluation = self._use(datamodule, distilled)
        shape, classes = datamodule.image_shape, datamodule.num_classes
        try:
            evaluation.across = [FlatNetwork(factory, shape, classes) for factory in across or ()]
        except ValueError as error:
            raise UserError(f"across: {error}") from error
        writers: list[Analysis | ClosingTable] = [*callbacks_of(self, Analysis), *callbacks_of(self, ClosingTable)]
        for callback in writers:
            callback.results = None if results is None else RunFolder(Path(results))
        return super().test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)

    def _use(self, data: ImageDataModule, folder: str | None) -> Evaluation:
        """The callback that evaluates, told what."""
        evaluation = find(self, Evaluation)
        if folder is not None:
            lr = evaluation.protocol.training.lr
            evaluation.distilled = read_set(
                Path(folder), data.image_shape, data.source.classes, data.train.normalization, lr
            )
            _compare(evaluation.distilled, data)
            data.normalize_as(evaluation.distilled.normalization)
            # The control takes as many real images.
            images = len(evaluation.distilled.decoded().labels)
            data.check_images_per_class(max(1, images // data.num_classes))
        return evaluation


def _compare(distilled: Distilled, data: ImageDataModule) -> None:
    """Say that an artefact is evaluated on other data than it was made from, which may be what is wanted."""
    folder, made = distilled.facts["distilled set"], distilled.facts.get("training images")
    if made is None and "data set" in distilled.facts:  # an artefact that is older than the record
        _log.info("%s does not say which training images it was made from.", folder)
    elif made not in (None, data.train.fingerprint()):
        _log.warning(
            "%s was made from other training images or labels than this recipe's (%s): other data, or another part "
            "of them. It is evaluated all the same.",
            *(folder, distilled.facts.get("data set", "")),
        )

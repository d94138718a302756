"""The learned images as TensorBoard shows them."""

from typing import cast

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from mim4dd_pl.artefact import sheet
from mim4dd_pl.callbacks.export import distilled_of
from mim4dd_pl.modules import DistillationModule


class Pictures(L.Callback):
    """A grid of the synthetic images and a histogram of their pixels, at every validation during a fit."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        module = cast(DistillationModule, pl_module)
        per_class = module.synthetic.images_per_class
        grid = sheet(distilled_of(trainer, pl_module).pixels(), per_row=per_class if per_class > 1 else 10)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("synthetic/images", grid, trainer.global_step)
                logger.experiment.add_histogram("synthetic/pixels", module.synthetic.images, trainer.global_step)

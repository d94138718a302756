"""The learned images as TensorBoard shows them."""

from typing import cast

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from mim4dd_pl.artefact import sheet
from mim4dd_pl.callbacks.learned import learned_set
from mim4dd_pl.modules import DistillationModule


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

"""The module's synthetic set as it stands, with everything that belongs to it."""

from typing import cast

from mim4dd_pl.artefact import Distilled, to_facts
from mim4dd_pl.data import ImageDataModule
from mim4dd_pl.modules import DistillationModule


def learned_set(module: DistillationModule, **facts: object) -> Distilled:
    """A copy of the synthetic set on the CPU; ``facts`` go on its card."""
    data = cast(ImageDataModule, module.trainer.datamodule)  # type: ignore[attr-defined]
    synthetic = module.synthetic
    logits = synthetic.label_logits
    return Distilled(
        images=synthetic.images.detach().cpu().clone(),
        labels=synthetic.labels.cpu(),
        label_logits=None if logits is None else logits.detach().cpu().clone(),
        student_lr=synthetic.student_lr.detach().cpu().clone(),
        normalization=data.train.normalization,
        classes=data.source.classes,
        facts=to_facts(data_set=data.data_set, outer_steps=module.trainer.global_step, **facts),
    )

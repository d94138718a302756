"""What callbacks work on: the synthetic set as it stands, the data, random real images, and each other."""

from pathlib import Path
from typing import TypeVar

import lightning as L
import torch

import mim4dd_pl
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.data.formation import decode, mix
from mim4dd_pl.data.sets import InMemory
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.lightning import callbacks_of, datamodule_of
from mim4dd_pl.stored.distilled import Distilled, to_facts

_C = TypeVar("_C", bound=L.Callback)


def data_of(module: DistillationModule) -> ImageDataModule:
    """The data that a Trainer runs the module on."""
    return datamodule_of(module.trainer)


def random_sets(module: DistillationModule, images: int, count: int, formation: int = 1) -> list[InMemory]:
    """So many draws of about ``images`` random training images, the same number of each class.

    With a formation f they are canvases of random images, decoded: f^2 times as many smaller ones.
    """
    train, per_class = data_of(module).train.to(module.device), max(1, images // data_of(module).num_classes)
    generators = [module.stream.at("random real", number).generator() for number in range(count)]
    draws = [train.batch(train.per_class(per_class * formation**2, generator)) for generator in generators]
    return [InMemory(decode(mix(draw.images, formation), formation), draw.labels) for draw in draws]


def learned_set(module: DistillationModule, **facts: object) -> Distilled:
    """A copy of the synthetic set on the CPU; ``facts`` go on its card, before those of the run."""
    data, synthetic, side = data_of(module), module.synthetic, module.synthetic.formation
    logits = synthetic.label_logits
    return Distilled(
        images=synthetic.result.cpu().clone(),
        labels=synthetic.labels.cpu(),
        label_logits=None if logits is None else logits.detach().cpu().clone(),
        student_lr=synthetic.student_lr.detach().cpu().clone(),
        normalization=data.train.normalization,
        classes=data.source.classes,
        formation=side,
        facts=to_facts(
            data_set=data.data_set,
            outer_steps=module.outer_steps,
            **facts,
            **({"formation": f"{side}x{side}"} if side > 1 else {}),
            network=module.network.name,
            objective=repr(module.objective),
            chosen_on="held-out training images" if data.validate_on == "held_out" else "test images: optimistic",
            training_images=data.train.fingerprint(),
            information_term="off" if module.information is None else type(module.information.critic).__name__,
            seed=module.stream.seed,
            versions=f"mim4dd_pl {mim4dd_pl.__version__}, torch {torch.__version__}, lightning {L.__version__}",
        ),
    )


def run_folder(trainer: L.Trainer) -> RunFolder:
    """The folder of the run; only process 0 may write there. To be called in all processes, which it tells."""
    return RunFolder(Path(trainer.log_dir or trainer.default_root_dir))


def find(trainer: L.Trainer, kind: type[_C]) -> _C:
    """The callback of this kind."""
    return callbacks_of(trainer, kind)[0]

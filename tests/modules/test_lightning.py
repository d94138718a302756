"""What we rely on of Lightning and DDP beyond their documents: a test fails by the name of what has gone.

A version that fails here needs another :mod:`mim4dd_pl.modules.lightning`, or a bound in setup.cfg.
"""

import csv
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from mim4dd_pl.modules.lightning import (
    callbacks_of,
    datamodule_of,
    ignore_hyper_parameters,
    in_a_step,
    keep_buffers_local,
    keep_history,
    leave_signals_alone,
    repeat_step,
    repeat_validation,
    step_uncounted,
    validation_follows,
)


class Seen(L.Callback):
    """Asks during a fit what it may be asked, and keeps the loops' state of a step in which a validation follows."""

    def __init__(self) -> None:
        self.steps: list[tuple[bool, bool]] = []
        self.handlers: set[Any] = set()
        self.checkpoint: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.handlers.add(signal.getsignal(signal.SIGTERM))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps.append((in_a_step(trainer), validation_follows(trainer)))
        if trainer.global_step == 2:
            self.checkpoint = trainer._checkpoint_connector.dump_checkpoint()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert not validation_follows(trainer)


class Two(L.LightningModule):
    """Two parameters with an optimiser each, of which the first one's steps count."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.parts = nn.ParameterList([torch.ones(()), torch.ones(())])
        self.begun: list[bool] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.begun.append(in_a_step(self.trainer))
        optimizers: Any = self.optimizers()
        first, second = optimizers
        for part in self.parts:
            part.grad = torch.ones(())
        first.step()
        step_uncounted(second)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([part], lr=0.125) for part in self.parts]


class Numbers(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.zeros(8, 1))  # type: ignore[arg-type]

    val_dataloader = train_dataloader


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def trainer(seen: Seen, tmp_path_factory: pytest.TempPathFactory) -> L.Trainer:
    """After a fit of four steps with a validation after every second one."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=4,
        max_epochs=-1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path_factory.mktemp("fit"),
    )
    leave_signals_alone(trainer)
    trainer.fit(Two(), datamodule=Numbers())
    return trainer


pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec")


def test_trainer_callbacks_and_datamodule(trainer: L.Trainer, seen: Seen) -> None:
    assert callbacks_of(trainer, Seen) == [seen]
    assert isinstance(datamodule_of(trainer), Numbers)


def test_register_signal_handlers_of_the_signal_connector(trainer: L.Trainer, seen: Seen) -> None:
    assert callable(getattr(type(trainer._signal_connector), "register_signal_handlers", None))
    assert seen.handlers == {signal.getsignal(signal.SIGTERM)}


def test_parse_ckpt_path_of_lightning_cli(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(LightningCLI):
        def __init__(self) -> None:
            ignore_hyper_parameters(self)
            super().__init__(Two, Numbers, run=False, seed_everything_default=False)

    asked: list[LightningCLI] = []
    monkeypatch.setattr(LightningCLI, "_parse_ckpt_path", lambda cli: asked.append(cli))  # fails where there is none
    monkeypatch.setattr("sys.argv", ["program"])
    Silent()
    assert not asked
    assert [LightningCLI(Two, Numbers, run=False, seed_everything_default=False)] == asked


def test_buffers_that_ddp_ignores(tmp_path: Path) -> None:
    module = Two()
    module.register_buffer("mine", torch.zeros(3))
    keep_buffers_local(module, ["mine"])
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert DistributedDataParallel(module).parameters_to_ignore == {"mine"}
    finally:
        distributed.destroy_process_group()


def test_optimizer_inside_lightnings_optimizer_counts_no_step(trainer: L.Trainer) -> None:
    module = trainer.lightning_module
    assert trainer.global_step == 4
    assert [part.item() for part in module.parameters()] == [0.5, 0.5]


def test_batch_progress_of_the_training_loop(trainer: L.Trainer, seen: Seen) -> None:
    assert trainer.lightning_module.begun == [True] * 4
    assert seen.steps == [(False, False), (False, True), (False, False), (False, True)]


def test_loops_of_a_checkpoint(trainer: L.Trainer, seen: Seen) -> None:
    loops = seen.checkpoint["loops"]["fit_loop"]
    batches, validations = (loops[f"epoch_loop.{loop}batch_progress"] for loop in ("", "val_loop."))
    names = ("ready", "started", "processed", "completed")
    repeat_step(seen.checkpoint)
    assert [batches["total"][name] for name in names] == [1, 1, 1, 1]
    assert [batches["current"][name] for name in names] == [1, 1, 1, 1]
    repeat_validation(seen.checkpoint)
    assert [validations["total"][name] for name in names] == [1, 1, 0, 0]
    assert [validations["current"][name] for name in names] == [1, 1, 0, 0]


def test_the_writer_of_the_csv_logger_adds_to_the_rows_that_are_kept(tmp_path: Path) -> None:
    for steps, expected in ((0, "0 1 2 3"), (2, "0 1 0 1 2 3"), (0, "0 1 2 3")):
        logger = CSVLogger(str(tmp_path), "set", version=0)
        keep_history(logger, steps)
        for step in range(4):
            logger.log_metrics({"loss": 0.5} if step % 2 else {"accuracy, %": 0.25}, step)
        logger.save()
        with (tmp_path / "set/version_0/metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert " ".join(row["step"] for row in rows) == expected
        assert [row["loss"] for row in rows[-2:]] == ["", "0.5"]

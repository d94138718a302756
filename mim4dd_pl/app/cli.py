"""The ``mim4dd`` program: LightningCLI with one-line errors.

``fit``, ``validate``, ``test`` and ``check``, each with ``-c recipe.yaml`` and any number of overlays. A recipe names
classes by their short names. ``sweep`` runs many fits (:mod:`mim4dd_pl.sweep`). Exit codes: 0 done, 1 diverged, 2 wrong
setting, 3 data, 4 checkpoint, trajectory or artefact, 130 interrupted, 141 nobody reads the output, 143 terminated.
With several devices this process starts one for each and only watches over them (:mod:`mim4dd_pl.app.processes`).
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import lightning as L
import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy

from mim4dd_pl.analysis.callback import Analysis
from mim4dd_pl.app.keys import in_keys
from mim4dd_pl.app.named import with_paths
from mim4dd_pl.app.processes import Launch, check_started, end_with_parent, parted, run_all
from mim4dd_pl.app.recipes import (
    FIXED,
    check_keys,
    check_limits,
    check_strategy,
    check_trainer,
    reason_of,
    settings_of,
)
from mim4dd_pl.app.resuming import KeepRecipe, check_data, continue_run
from mim4dd_pl.app.trainer import Trainer
from mim4dd_pl.basics.errors import Stopped, StoredFileError, UserError
from mim4dd_pl.basics.files import check_writable
from mim4dd_pl.basics.machine import allow_tf32, keep_freed_memory
from mim4dd_pl.basics.terminal import fail, quiet, stopped, unheard
from mim4dd_pl.callbacks.checkpoint import LastCheckpoint
from mim4dd_pl.callbacks.checkpoint_io import AtomicCheckpointIO
from mim4dd_pl.callbacks.closing import ClosingTable
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.export import Export
from mim4dd_pl.callbacks.preemption import Preemption, answering_signals
from mim4dd_pl.callbacks.progress import StepProgress
from mim4dd_pl.diagnostics.callback import Diagnostics
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.lightning import callbacks_of, ignore_hyper_parameters, leave_signals_alone
from mim4dd_pl.report.command import report
from mim4dd_pl.sweep.command import sweep


class _Parser(LightningArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(reason_of(ex or ValueError(message))) from ex


_TRAINER_DEFAULTS = {name: allowed[0] for name, (allowed, _) in FIXED.items()} | {
    "enable_model_summary": False,
    "devices": 1,  # more need more segments per step: configs/with/ddp.yaml
    "log_every_n_steps": 10,
}


class DistillationCLI(LightningCLI):
    """Parses and builds everything first; nothing is written before all of it is known to be good."""

    def __init__(self, args: ArgsType, preemption: Preemption) -> None:
        self._preemption = preemption
        self._checkpoint: dict[str, Any] | None = None
        ignore_hyper_parameters(self)
        super().__init__(
            L.LightningModule,
            ImageDataModule,
            trainer_class=Trainer,
            save_config_callback=KeepRecipe,
            subclass_mode_model=True,
            save_config_kwargs={"overwrite": True},  # a resumed run keeps its folder
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={
                "prog": "mim4dd",
                "description": "Learn a few images per class on which a network trains almost as well as on all. "
                "Many fits at once, compared: mim4dd sweep --help. One page about runs: mim4dd report --help.",
                "allow_abbrev": False,
                **{name: {"allow_abbrev": False} for name in self.subcommands()},
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults=_TRAINER_DEFAULTS,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {command: {"model", "datamodule"} for command in ("fit", "validate", "test", "check")}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=NonNegativeInt, default=0, help="The seed of the run.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add: Any = parser.add_argument
        add("--threads", type=PositiveInt, default=torch.get_num_threads(), help="CPU threads; small networks want 1.")
        faster = "Linux: keep freed memory for the next tensor; up to twice as fast, and the process never shrinks."
        add("--keep_freed_memory", type=bool, default=True, help=faster)
        add("--tf32", type=bool, default=False, help="CUDA: multiply with 10 bits of mantissa; faster and less exact.")
        add("--whole_set", type=bool, default=True, help="The closing table's row of the whole training set, if any.")
        changes = "With --ckpt_path: settings that may differ from the checkpoint's, separated by commas."
        add("--allow_changes", type=str, default="", help=changes)
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("data.image_shape", "model.init_args.image_shape", apply_on="instantiate")
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        check_keys(args)
        try:
            self.config = parser.parse_args(args)
        except (ValueError, TypeError, RecursionError) as error:  # of a file that is no YAML in place of a value
            raise UserError(reason_of(error)) from error
        check_limits(self.config[self.config.subcommand])

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        torch.set_num_threads(config.threads)
        if config.keep_freed_memory:
            keep_freed_memory()
        allow_tf32(config.tf32)
        if self.subcommand in ("fit", "check"):
            check_trainer(config.trainer, distills=config.model.class_path.endswith("DistillationModule"))
        check_strategy(config.trainer)
        self._choose_checkpoint(config)
        if self.subcommand in ("validate", "test"):
            config.trainer.logger = False  # they print and write nothing

    def _choose_checkpoint(self, config: Namespace) -> None:
        checkpoint, distilled = config.get("ckpt_path"), config.get("distilled")
        if checkpoint is not None and distilled is not None:
            raise UserError("--ckpt_path and --distilled both say what to evaluate: leave one of them out.")
        if checkpoint is not None:
            self._checkpoint = continue_run(config, settings_of(self.parser, self.config))
            done, steps = self._checkpoint["global_step"], config.trainer.max_steps
            if self.subcommand == "fit" and done > steps:
                raise UserError(
                    f"trainer.max_steps is {steps}, and the run has made {done} steps: set it to {done} or more, or "
                    "start a new run without --ckpt_path."
                )
        elif self.subcommand in ("validate", "test") and distilled is None:
            raise StoredFileError(
                f"{self.subcommand} needs something to evaluate: add --ckpt_path last or best, a .ckpt file, or "
                "--distilled with a folder."
            )

    def instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        try:
            try:
                super().instantiate_classes()
            except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
                # Constructors refuse bad settings; anything that a run raises later keeps its traceback.
                raise UserError(in_keys(error, config)) from error
            self._check()
        except UserError as error:
            raise type(error)(in_keys(error, config)) from error
        if self.subcommand != "check":
            self._launch()

    def _check(self) -> None:
        """Before the Trainer creates its first file: do the callbacks, the data and the experts fit the recipe?"""
        fits, tables = self.subcommand in ("fit", "check"), callbacks_of(self.trainer, ClosingTable)
        exports, evaluations = callbacks_of(self.trainer, Export), len(callbacks_of(self.trainer, Evaluation))
        if (not fits or tables or exports or callbacks_of(self.trainer, Analysis)) and evaluations != 1:
            raise UserError(f"trainer.callbacks must hold one Evaluation, got {evaluations}.")
        if tables and not exports:
            raise UserError("trainer.callbacks: ClosingTable needs Export.")
        if fits and isinstance(self.model, DistillationModule):
            baseline = any(callback.baseline for callback in callbacks_of(self.trainer, Diagnostics))
            if self.model.init == "real" or tables or baseline:  # each draws as many random real images
                self.datamodule.check_images_per_class(self.model.synthetic.decoded_per_class)
            self.model.check_processes(self.trainer.world_size)
        self.datamodule.setup(self.subcommand)
        if self._checkpoint is not None:
            path = self.config[self.subcommand].ckpt_path
            check_data(self._checkpoint, path, self.datamodule.fingerprints())
        if fits:
            self.model.attach(self.datamodule)
            self._check_folders()

    def _launch(self) -> None:
        """Leave for the processes that the Trainer needs, if nobody has started them."""
        strategy, nodes = self.trainer.strategy, self.trainer.num_nodes
        if not isinstance(strategy, DDPStrategy):
            check_started(1)
        elif cast(ClusterEnvironment, strategy.cluster_environment).creates_processes_externally:
            check_started(nodes * strategy.num_processes)
        elif nodes > 1:
            raise UserError(
                f"trainer.num_nodes is {nodes}, and nothing has started processes on the nodes: use torchrun or srun "
                "(docs/cluster.md)."
            )
        else:
            raise Launch(strategy.num_processes)

    def _check_folders(self) -> None:
        """Can a fit write where it will, minutes or hours from now?"""
        if self.model.needs_experts and self.model.experts.missing(self.model.store):
            check_writable(Path(self.model.experts.root))
        for logger in self.trainer.loggers:
            check_writable(Path(logger.save_dir or self.trainer.default_root_dir))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = self.config_init[self.subcommand]
        callbacks, plugins = (_listed(config.trainer[key]) for key in ("callbacks", "plugins"))
        keeps_steps = any(isinstance(callback, LastCheckpoint) for callback in callbacks)
        callbacks += [] if config.trainer.enable_progress_bar is False else [StepProgress()]
        callbacks += [self._preemption] if keeps_steps else []
        trainer = super().instantiate_trainer(callbacks=callbacks, plugins=[*plugins, AtomicCheckpointIO()], **kwargs)
        leave_signals_alone(trainer)
        if not config.whole_set:
            for table in callbacks_of(trainer, ClosingTable):
                table.whole_set = None
        return trainer


def _listed(value: Any) -> list[Any]:
    """Of a setting that may hold none, one, or a list."""
    return [*value] if isinstance(value, list) else [value] if value is not None else []


def _run(arguments: list[str]) -> int:
    """One of the Trainer's commands, in this process or in several; returns the exit code."""
    with answering_signals() as preemption:
        try:
            DistillationCLI(arguments, preemption)
        except Launch as launch:
            processes = launch.count
        else:
            return 0
        return run_all(arguments, processes)


def _disk(error: OSError) -> int:
    where = f" ({error.filename})" if error.filename else ""
    remedy = "Free space, or choose a folder that can be read and written."
    return fail(f"{error.strerror or error}{where}. {remedy}", StoredFileError.exit_code)


def _interrupted() -> int:
    print("mim4dd: interrupted", file=sys.stderr)
    return 130


_OUT_OF_MEMORY = (
    "The device is out of memory. Lower model.objective.synthetic_batch_size, model.objective.unroll_steps or "
    "model.segments_per_step, and go on with --ckpt_path last --allow_changes model.objective,model.segments_per_step."
)

_ENDS: list[tuple[type[BaseException], Callable[[Any], int | None]]] = [
    (UserError, lambda error: fail(str(error), error.exit_code)),
    (MisconfigurationException, lambda error: fail(str(error), UserError.exit_code)),
    (torch.OutOfMemoryError, lambda _: fail(_OUT_OF_MEMORY, UserError.exit_code)),
    (BrokenPipeError, lambda _: unheard()),
    (OSError, _disk),
    (Stopped, lambda error: stopped(error.number)),
    (KeyboardInterrupt, lambda _: _interrupted()),
    (RuntimeError, parted),
]
"""What may end a run, the first that fits: says it in one line, returns the exit code; None keeps the traceback."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        args: Command line without the program's name; ``sys.argv`` by default.

    Returns:
        The exit code.
    """
    quiet()
    end_with_parent()
    try:
        arguments = with_paths(sys.argv[1:] if args is None else args)
        other = {"sweep": sweep, "report": report}.get(arguments[0] if arguments else "")
        return _run(arguments) if other is None else other(arguments[1:])
    except BaseException as error:
        say = next((say for kind, say in _ENDS if isinstance(error, kind)), None)
        if say is None or (code := say(error)) is None:
            raise
        return code

"""The ``mim4dd`` program: LightningCLI with one-line errors.

``fit``, ``validate`` and ``test``, each with ``-c recipe.yaml`` and any number of overlays. A recipe names classes by
their short names. Exit codes: 0 done, 1 diverged, 2 wrong setting, 3 data, 4 checkpoint, trajectory or artefact, 130
interrupted.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from mim4dd_pl.callbacks import AtomicCheckpointIO, StepProgress
from mim4dd_pl.data import ImageDataModule
from mim4dd_pl.errors import StoredFileError, UserError


class _Parser(LightningArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_one_line(message)) from ex


class DistillationCLI(LightningCLI):
    """Parses and builds everything first; nothing is written before all of it is known to be good."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            LightningModule,
            ImageDataModule,
            subclass_mode_model=True,
            save_config_kwargs={"overwrite": True},  # a resumed run keeps its folder
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={name: {"allow_abbrev": False} for name in self.subcommands()} | {"allow_abbrev": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                # Outer steps are the only clock: an endless "epoch", validation every so many steps.
                "max_epochs": -1,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                # Evaluation trains networks.
                "inference_mode": False,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
                "callbacks": [StepProgress()],
            },
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        known = LightningCLI.subcommands()
        # weights_only is always true (AtomicCheckpointIO), so there is nothing to choose.
        return {name: known[name] | {"weights_only"} for name in ("fit", "validate", "test")}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=NonNegativeInt, default=0, help="The seed of the run.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--threads", type=PositiveInt, default=torch.get_num_threads(), help="CPU threads; small networks want 1."
        )
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("data.image_shape", "model.init_args.image_shape", apply_on="instantiate")
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Nothing: our checkpoints hold no hyper-parameters that could overrule the recipe."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        torch.set_num_threads(config.threads)
        if config.ckpt_path == "last":
            self._resume_last(config)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            # Constructors refuse bad settings; anything that a run raises later keeps its traceback.
            raise UserError(_one_line(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return super().instantiate_trainer(plugins=[AtomicCheckpointIO()], **kwargs)

    @staticmethod
    def _resume_last(config: Any) -> None:
        """Point ``ckpt_path`` at the newest run of this recipe, and its logger at the same folder."""
        logger = config.trainer.logger
        settings = getattr(logger, "init_args", None)
        if settings is None or settings.get("save_dir") is None:
            raise UserError("--ckpt_path last needs trainer.logger with a save_dir; or give the path of a .ckpt file.")
        name = settings.get("name") or ""
        runs = Path(settings.save_dir) / name
        found = sorted(runs.glob("version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise StoredFileError(f"No run to resume in {runs}: start one without --ckpt_path.")
        config.ckpt_path = str(found[-1])
        settings.version = int(found[-1].parent.parent.name.removeprefix("version_"))


def main(args: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        args: Command line without the program's name; ``sys.argv`` by default.

    Returns:
        The exit code.
    """
    _quiet()
    try:
        DistillationCLI(list(sys.argv[1:] if args is None else args))
    except UserError as error:
        print(f"mim4dd: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mim4dd: interrupted; continue with --ckpt_path last", file=sys.stderr)
        return 130
    return 0


def run() -> NoReturn:
    """The console script."""
    sys.exit(main())


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _quiet() -> None:
    """One voice on the terminal: ours."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    log = logging.getLogger("mim4dd_pl")
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stdout))
    log.setLevel(logging.INFO)

"""Recipes as users write them: what is refused before anything is built, and how it is said."""

import inspect
import os
import pkgutil
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader

from mim4dd_pl import data, networks, objectives
from mim4dd_pl.analysis.callback import Analysis
from mim4dd_pl.basics.errors import UserError
from mim4dd_pl.basics.yamls import dotted, read_mapping
from mim4dd_pl.callbacks.checkpoint import LastCheckpoint
from mim4dd_pl.callbacks.closing import ClosingTable
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.export import Export, Pictures
from mim4dd_pl.data.sources import Source
from mim4dd_pl.diagnostics.callback import Diagnostics
from mim4dd_pl.engine.optimizers import InnerOptimizer
from mim4dd_pl.engine.unroll import Unroll
from mim4dd_pl.information.critics import Critic
from mim4dd_pl.information.heads import Head
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.clipping import MovingClip
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.experts import ExpertModule
from mim4dd_pl.networks.base import Network
from mim4dd_pl.objectives.base import Objective

for _room in (networks, data, objectives):  # a recipe may name any of their classes
    for _file in pkgutil.iter_modules(_room.__path__, f"{_room.__name__}."):
        import_module(_file.name)


def by_name(content: Any) -> Any:
    """What a YAML text holds, with our own classes by name alone: a recipe of an earlier version has other paths."""
    if isinstance(content, list):
        return [by_name(item) for item in content]
    if not isinstance(content, dict):
        return content
    named = {key: by_name(value) for key, value in content.items()}
    if str(path := named.get("class_path")).startswith("mim4dd_pl."):
        named["class_path"] = str(path).rpartition(".")[2]
    return named


_read_yaml = get_loader("yaml")
set_loader("yaml", lambda text: by_name(_read_yaml(text)), (yaml.YAMLError,))


_KINDS: dict[str, Sequence[type[Any]]] = {
    "model": (DistillationModule, ExpertModule),
    "callbacks": (Analysis, ClosingTable, Diagnostics, Evaluation, Export, LastCheckpoint, Pictures),
    "source": (Source,),
    "network": (Network,),
    "objective": (Objective,),
    "optimizer": (InnerOptimizer,),
    "image_gradient_clip": (MovingClip,),
    "unroll": (Unroll,),
    "critic": (Critic,),
    "embedding": (Head,),
    "information": (InformationTerm,),
}


def short_names(key: str) -> list[str]:
    """Our classes that a recipe may name without their module at ``key``, of which the last word tells."""
    bases = _KINDS.get(key.rpartition(".")[2], ())

    def concrete(kind: type[Any]) -> list[type[Any]]:
        children = [child for child in kind.__subclasses__() if child.__module__.startswith("mim4dd_pl.")]
        below = [found for child in children for found in concrete(child)]
        return below if inspect.isabstract(kind) or (below and kind in bases) else [kind, *below]

    return [kind.__name__ for base in bases for kind in concrete(base)]


FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_epochs": ((-1, None), "outer steps are the only clock; set trainer.max_steps"),
    "max_time": ((None,), "a run ends at trainer.max_steps; stop it and go on with --ckpt_path last"),
    "check_val_every_n_epoch": ((None,), "validation counts outer steps; set trainer.val_check_interval"),
    "num_sanity_val_steps": ((0,), "a validation trains students; use configs/with/smoke.yaml to try a recipe"),
    "limit_train_batches": ((None, 1.0), "a batch is an outer step; set trainer.max_steps"),
    "limit_val_batches": ((None, 1.0), "accuracies are of all validation images"),
    "limit_test_batches": ((None, 1.0), "accuracies are of all test images"),
    "overfit_batches": ((0.0, 0), "a batch is an outer step"),
    "fast_dev_run": ((False,), "use configs/with/smoke.yaml to try a recipe"),
    "barebones": ((False,), "the callbacks are what a run leaves behind"),
    "accumulate_grad_batches": ((1,), "set model.segments_per_step"),
    "gradient_clip_val": ((None,), "set model.image_gradient_clip"),
    "precision": ((None, "32-true", 32, "32"), "the gradient of the unroll is computed in float32"),
    "inference_mode": ((False,), "a validation trains students"),
    "sync_batchnorm": ((False,), "a student is trained by one process"),
    "use_distributed_sampler": ((False,), "processes share students, each of which sees all images"),
}
"""Settings of the Trainer that cannot mean anything else here: what they may be, and what to do instead."""


def check_trainer(trainer: Namespace, distills: bool) -> None:
    """Refuse what the Trainer would accept and the method cannot honour.

    The last step of a distillation must be a validated one: the closing table and the artefact speak of it.
    """
    for name, (allowed, instead) in FIXED.items():
        if (value := trainer.get(name)) not in allowed:
            raise UserError(f"trainer.{name} must stay {allowed[0]}, got {value}: {instead}.")
    if not distills:
        return
    steps, interval = trainer.max_steps, trainer.val_check_interval
    if not isinstance(interval, int) or interval < 1:
        number = "a whole number of outer steps, at least 1"
        raise UserError(f"trainer.val_check_interval must be {number}; got {interval}.")
    if steps < 1 or steps % interval:
        multiple = f"a positive multiple of trainer.val_check_interval ({interval})"
        raise UserError(f"trainer.max_steps must be {multiple}, so that the last step is evaluated; got {steps}.")


_STRATEGIES = {"auto", "ddp", "DDPStrategy", "SingleDeviceStrategy"}


def check_strategy(trainer: Namespace) -> None:
    """Refuse strategies that divide a network among devices, or that start processes in another way."""
    strategy = trainer.strategy if isinstance(trainer.strategy, str) else trainer.strategy.class_path
    if strategy.rpartition(".")[2] not in _STRATEGIES:
        raise UserError(
            f"trainer.strategy must be auto or ddp, got {strategy}: every process holds the whole network and computes "
            "segments and students of its own."
        )


def check_limits(config: Namespace) -> None:
    """Refuse numbers that the machine or its libraries cannot take."""
    if config.seed_everything >= 2**32:
        raise UserError(f"seed_everything must lie in 0..{2**32 - 1}, got {config.seed_everything}.")
    most = 4 * (os.cpu_count() or 1)
    if config.threads > most:
        raise UserError(f"threads must lie in 1..{most} on this machine, got {config.threads}.")


_LINKED = {"seed": "seed_everything", "image_shape": "the data set", "num_classes": "the data set"}


def settings_of(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """What makes a run the run that it is: seed, data and model, as plain types under dotted keys, without nulls.

    Where files lie is no part of it: a run may go on on another machine.
    """
    content = yaml.safe_load(parser.dump(config, skip_none=False))
    content = content.get(config.get("subcommand"), content)
    settings = dotted({key: content[key] for key in ("seed_everything", "data", "model")})
    places = ("root", "path", "download", "cache")
    known = {key: value for key, value in settings.items() if value is not None}
    return short_classes({key: value for key, value in known.items() if key.rpartition(".")[2] not in places})


def short_classes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings with our own classes by their names alone: the files that they lie in may change."""
    return {
        key: value.rpartition(".")[2] if key.endswith("class_path") and value.startswith("mim4dd_pl.") else value
        for key, value in settings.items()
    }


def check_keys(args: Sequence[str]) -> None:
    """Refuse recipes that are missing, no YAML, empty or set a key twice, and settings that another one sets.

    The latter would be ignored in silence.

    Args:
        args: A command line, in which each recipe is ``--config=FILE``.
    """
    for argument in args:
        name, _, value = argument.partition("=")
        keys = [name.removeprefix("--")]
        if name == "--config":
            content = read_mapping(Path(value))
            if not isinstance(content.get("trainer", {}), dict):
                raise UserError(f"{value}: trainer holds {content['trainer']!r:.40}, expected keys and values.")
            keys = list(dotted(content))
        for key in keys:
            if found := re.match(r"model\.(?:init_args\.)?(seed|image_shape|num_classes)\b", key):
                raise UserError(f"model.{found[1]} is set by {_LINKED[found[1]]}: leave it out of {argument}.")


def reason_of(error: BaseException) -> str:
    """What went wrong, without the list of everything else that a value might have been."""
    keys: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        error, cause = cause, cause.__cause__
        if (named := re.match(r'Parser key "([^"]+)":\s*', str(error))) and named[1] not in keys:
            keys.append(named[1])
    key = ".".join(keys)
    reason = re.sub(r'^Parser key "[^"]+":\s*', "", str(error))
    if unknown := re.match(r"Expected a dot import path string: (.*)", reason):
        known = ", ".join(short_names(key))
        reason = f"no class {unknown[1]}; expected {known + ', or ' if known else ''}the path of an importable class."
    if re.match(r"Option '.*' is not accepted", reason):
        reason += " (is it spelt so? an overlay goes after its recipe)"
    return f"{key}: {reason}" if key else reason

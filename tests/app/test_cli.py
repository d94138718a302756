"""The program as users meet it: every recipe runs, every mistake is one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file

from mim4dd_pl import DistilledDataset
from mim4dd_pl.app.cli import main
from mim4dd_pl.basics.files import sha256
from mim4dd_pl.data.sources import Digits
from mim4dd_pl.information.critics import Critic
from mim4dd_pl.information.heads import Head
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import InformationFactory
from tests.conftest import CONFIGS
from tests.fakes import TORCHVISION, noise, trust_fakes, write_pictures, write_torchvision

DIGITS = CONFIGS / "distill/digits.yaml"
RECIPES = sorted((CONFIGS / "experts").glob("*.yaml")) + sorted((CONFIGS / "distill").glob("*.yaml"))
OVERLAYS = sorted((CONFIGS / "with").glob("*.yaml"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which the recipes' relative paths are in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny(recipe: Path) -> list[str]:
    """Settings that run a recipe in seconds without changing its organs: fewer and smaller of everything."""
    arguments = ["--trainer.enable_progress_bar=false", "--threads=1"]
    content = yaml.safe_load(recipe.read_text())
    model = content["model"]["init_args"]
    if content["data"]["source"] != "Digits":
        side = max(8, 2 ** model["network"]["init_args"]["depth"])
        arguments += [f"--data.source.init_args.image_size={side}", "--data.validation_fraction=0.5"]
        arguments += ["--model.init_args.network.init_args.width=4", "--model.init_args.experts.training.epochs=1"]
    if "max_train_images" in content["data"]:
        arguments += ["--data.max_train_images=500"]
    if "download" in str(content["data"]["source"]):
        arguments += ["--data.source.init_args.download=false"]
    arguments += ["--model.init_args.experts.num_experts=1"]
    if content["model"]["class_path"] == "DistillationModule":
        callbacks = content["trainer"]["callbacks"]
        for callback in callbacks:
            for training in (callback.get("init_args", {}).get(key) for key in ("training", "whole_set")):
                if training:
                    training["epochs"] = 2
            if "during_epochs" in callback.get("init_args", {}):
                callback["init_args"]["during_epochs"] = 2
        if content["data"]["source"] != "Digits":
            arguments += [f"--model.init_args.images_per_class={1 if 'formation' in model else 2}"]
        host = model["objective"]["init_args"]
        most = {"unroll_steps": 2, "window": 1, "student_steps": 1, "real_per_class": 2}
        if content["data"]["source"] != "Digits":
            most |= {"expert_epochs": 1, "max_start_epoch": 1, "last_epoch": 1}
        arguments += [f"--model.init_args.objective.init_args.{key}={most[key]}" for key in most.keys() & host.keys()]
        arguments += ["-c", str(CONFIGS / "with/smoke.yaml"), f"--trainer.callbacks={yaml.safe_dump(callbacks)}"]
    return arguments


def write_data(recipe: Path, root: Path) -> None:
    """What the source of ``recipe`` reads in ``root``, of noise."""
    source = yaml.safe_load(recipe.read_text())["data"]["source"]
    if source == "Digits":
        return
    if source["class_path"] in TORCHVISION:
        write_torchvision(root / "data", source["class_path"])
        return
    classes = 200 if "tiny" in recipe.stem else 10
    for label in range(classes):
        for split, count in (("train", 8), ("val", 1)):
            write_pictures(root / source["init_args"]["root"] / split / f"n{label:08d}", count)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_passes_its_check_and_runs(recipe: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust_fakes(monkeypatch)
    monkeypatch.setattr("mim4dd_pl.app.timing.MEASURED_SECONDS", 0.01)
    write_data(recipe, here)
    before = {path.name for path in here.iterdir()}
    arguments = ["-c", str(recipe), *tiny(recipe)]
    assert main(["check", *arguments]) == 0
    assert main(["fit", *arguments]) == 0
    reads = yaml.safe_load(recipe.read_text())["model"]["init_args"].get("objective", {"class_path": "experts"})
    trained = list(here.glob("checkpoints/experts/*/manifest.json"))
    assert bool(trained) == (
        reads["class_path"] in ("experts", "TrajectoryMatching", "StageMatching", "InformationAlone")
    )
    assert {path.name for path in here.iterdir()} == before | {"checkpoints"}
    assert len(list(here.glob("checkpoints/decoded/*/about.json"))) == len(before)
    if recipe.parent.name == "distill":
        assert list(here.glob("checkpoints/*/version_0/distilled/best/sheet.png"))
        assert list(here.glob("checkpoints/*/version_0/comparison.png"))


def test_a_reader_of_the_output_may_leave(here: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, "-m", "mim4dd_pl", "check", "-c", str(CONFIGS / "experts/digits.yaml")]
    ended = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, cwd=here, timeout=120)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_every_recipe_begins_with_its_command() -> None:
    for recipe in RECIPES:
        command, _, about, *_ = recipe.read_text().splitlines()
        assert command == f"# mim4dd fit -c configs/{recipe.parent.name}/{recipe.name}"
        assert about.startswith("# ")


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_runs_on_the_digits_and_changes_one_idea(overlay: Path, here: Path) -> None:
    assert main(["fit", "-c", str(DIGITS), *tiny(DIGITS), "-c", str(overlay)]) == 0
    settings = [line for line in overlay.read_text().splitlines() if line and not line.startswith("#")]
    assert len(settings) <= 15


def test_whitening_and_protocol_travel_with_the_artefact(here: Path) -> None:
    arguments = [*tiny(DIGITS), "-c", str(CONFIGS / "with/zca.yaml"), "-c", str(CONFIGS / "with/paper_protocol.yaml")]
    assert main(["fit", "-c", str(DIGITS), *arguments]) == 0
    distilled = DistilledDataset(here / "checkpoints/digits/version_0/distilled/best")
    assert distilled.facts["data set"] == "digits, whitened"
    assert distilled.facts["chosen on"] == "test images: optimistic"
    data = ImageDataModule(Digits(), validate_on="test", zca=True)
    data.setup()
    expected = data.test.batch(torch.arange(5)).images
    torch.testing.assert_close(distilled.normalize(data.test.images[:5].float() / 255), expected)


def test_experts_of_plain_images_are_refused_for_whitened_ones(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = CONFIGS / "experts/digits.yaml"
    assert main(["fit", "-c", str(experts), *tiny(experts)]) == 0
    assert main(["fit", "-c", str(DIGITS), "-c", str(CONFIGS / "with/zca.yaml")]) == 4
    assert "do not fit: their data set is digits, " in capsys.readouterr().err


def test_the_cross_architecture_overlay_names_networks_that_exist(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that needs larger images than the digits refuses them; all before a student is trained."""
    overlay = CONFIGS / "test/across.yaml"
    networks = yaml.safe_load(overlay.read_text())["across"]
    assert len(networks) == 5
    (here / "images.pt").touch()
    assert main(["test", "-c", str(DIGITS), "-c", str(overlay), "--distilled=."]) == 4
    assert "images.pt is no readable file of tensors" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "base"), [("critic", Critic), ("embedding", Head)])
def test_parts_of_the_information_term_go_by_their_short_names(key: str, base: type[Critic | Head]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--information", type=InformationFactory)
    for kind in base.__subclasses__():
        found = parser.parse_args(["--information=InformationTerm", f"--information.{key}={kind.__name__}"]).information
        module, _, name = found.init_args[key].class_path.rpartition(".")
        assert getattr(import_module(module), name) is kind


def test_information_is_turned_off_on_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-c", str(DIGITS), "-c", str(CONFIGS / "with/mutual_information.yaml"), "--model.information=null"]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *arguments, "--print_config"])
    assert exit_.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["information"] is None
    assert printed["model"]["init_args"]["objective"]["init_args"]["unroll_steps"] == 20
    assert not list(here.iterdir())


@pytest.mark.parametrize("recipe", sorted((CONFIGS / "distill").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_experts_of_a_distillation_can_be_trained_alone(recipe: Path) -> None:
    whole = yaml.safe_load(recipe.read_text())
    name = Path(whole["model"]["init_args"]["experts"]["root"]).name
    alone = yaml.safe_load((CONFIGS / f"experts/{name}.yaml").read_text())
    assert alone["data"] == whole["data"]
    for key in ("network", "experts"):
        assert alone["model"]["init_args"][key] == whole["model"]["init_args"][key]
    objective = whole["model"]["init_args"]["objective"]["init_args"]
    read = objective.get("last_epoch", objective.get("max_start_epoch", 0) - 1 + objective.get("expert_epochs", 1))
    assert read <= whole["model"]["init_args"]["experts"]["training"]["epochs"]


def test_progress_is_one_line_per_validation_where_there_is_no_terminal(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument for argument in tiny(DIGITS) if "progress" not in argument]
    assert main(["fit", "-c", str(DIGITS), *arguments]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["2/4", "4/4"]
    assert all("loss 0." in line and "accuracy" in line and "s left" in line for line in lines)


MODEL, DATA = "--model.init_args.", "--data.source.init_args."
WRONG = [
    # arguments after `fit -c digits.yaml`, exit code, what the line says
    (["--trainer.max_stepz=3"], 2, "unrecognized arguments: --trainer.max_stepz=3"),
    (["--trainer.max_step=3"], 2, "unrecognized arguments: --trainer.max_step=3"),  # no abbreviations
    ([MODEL + "lr_image=5"], 2, "Option 'lr_image' is not accepted"),
    ([MODEL + "lr_images=abc"], 2, "model.lr_images: Expected a <class 'float'>. Got value: abc"),
    ([MODEL + "formation=0"], 2, "model.formation must lie in 1..8, the shorter side of the images; got 0"),
    ([MODEL + "formation=9"], 2, "model.formation must lie in 1..8, the shorter side of the images; got 9"),
    ([MODEL + "formation=8", MODEL + "images_per_class=3"], 3, "192 real images per class are asked for"),
    ([MODEL + "clamp_images=true", "--data.zca=true"], 2, "set data.zca or model.clamp_images to false"),
    ([MODEL + "lr_images=-1"], 2, "model.lr_images must be at least 0 and finite, got -1.0"),
    ([MODEL + "lr_images=.nan"], 2, "model.lr_images must be at least 0 and finite, got nan"),
    ([MODEL + "lr_images=.inf"], 2, "model.lr_images must be at least 0 and finite, got inf"),
    ([MODEL + "momentum=1"], 2, "model.momentum must lie in [0, 1), got 1.0"),
    ([MODEL + "image_gradient_clip=0"], 2, "model.image_gradient_clip must be positive and finite, got 0.0"),
    ([MODEL + "images_per_class=0"], 2, "model.images_per_class must be at least 1, got 0"),
    ([MODEL + "student_lr=0"], 2, "model.student_lr must be finite and at least model.min_student_lr"),
    ([MODEL + "compile=maybe"], 2, "model.compile: Expected a <class 'bool'>. Got value: maybe"),
    ([MODEL + "experts.storage=int8"], 2, "int8"),
    ([MODEL + "objective.init_args.optimizer=Adamm"], 2, "no class Adamm; expected SGD, Momentum, Adam"),
    (
        [MODEL + "objective.init_args.optimizer=Momentum", MODEL + "objective.init_args.optimizer.momentum=1"],
        2,
        "model.objective.optimizer.momentum must lie in [0, 1), got 1.0",
    ),
    ([MODEL + "segments_per_step=0"], 2, "model.segments_per_step must be at least 1, got 0"),
    ([MODEL + "objective.init_args.unroll_steps=0"], 2, "model.objective.unroll_steps must be at least 1, got 0"),
    (
        [MODEL + "objective.init_args.max_start_epoch=9"],
        2,
        "TrajectoryMatching reads experts up to epoch 10, they are trained for 4",
    ),
    (
        [MODEL + "objective.init_args.synthetic_batch_size=11"],
        2,
        "model.objective.synthetic_batch_size is 11, there are 10",
    ),
    (
        [MODEL + "objective.init_args.augment.operations=[blur]"],
        2,
        "model.objective.augment.operations takes one or more of",
    ),
    ([MODEL + "network.init_args.depth=4"], 2, "model.network.depth 4 halves images of 8x8 to nothing"),
    ([MODEL + "experts.training.lr=0"], 2, "model.experts.training.lr must be positive and finite, got 0.0"),
    (
        [MODEL + "information.class_path=Informatoin"],
        2,
        "model.information: no class Informatoin; expected InformationTerm, or",
    ),
    (["-c", "{tau}"], 2, "model.information.critic.temperature must be positive and finite, got 0.0"),
    (["-c", "{beta}"], 2, "model.information.layer_decay must be at least 1 and finite, got 0.5"),
    (["-c", "{layers}"], 2, "information.layers must name one or more of layer1, layer2, logits, each once, got conv"),
    (["-c", "{head}"], 2, "model.information.embedding: no class Lin; expected IdentityHead, LinearHead, MLPHead, Res"),
    (["-c", "{width}"], 2, "model.information.embedding.dim must be at least 1, got 0"),
    (["-c", "{own}"], 2, "model.information.networks is own, and DistributionMatching reads no experts"),
    (["-c", "{soft}"], 2, "model.soft_labels start as an expert's view, and DistributionMatching reads no experts"),
    (["-c", "{window}"], 2, "model.objective.window must be at most model.objective.unroll_steps, got 3 and 2"),
    (["-c", "{clip}"], 2, "model.image_gradient_clip takes a factor of at least 1"),
    ([MODEL + "image_average=1"], 2, "model.image_average must lie in [0, 1), got 1.0"),
    ([MODEL + "optimizer=rmsprop"], 2, "rmsprop"),
    ([MODEL + "objective.init_args.ignored_fraction=1"], 2, "model.objective.ignored_fraction must lie in [0, 1)"),
    (
        [MODEL + "objective.init_args.moving={first: 9, steps: 3}"],
        2,
        "model.objective.moving.first must be at most model.objective.max_start_epoch, got 9 and 3",
    ),
    ([MODEL + "experts.training.sharpness_radius=-1"], 2, "model.experts.training.sharpness_radius must be at least 0"),
    ([MODEL + "experts.training.cutmix=2"], 2, "model.experts.training.cutmix must be a probability in [0, 1], got 2"),
    ([MODEL + "experts.training.lr_drops=[0.8,0.5]"], 2, "model.experts.training.lr_drops must rise within (0, 1)"),
    ([MODEL + "experts.training.lr_factor=0"], 2, "model.experts.training.lr_factor must lie in (0, 1], got 0.0"),
    (["-c", "{twice}"], 2, "twice.yaml, line 2: threads is set twice"),
    (["-c", "{broken}"], 2, "broken.yaml is no YAML"),
    (["-c", "{empty}"], 2, "empty.yaml holds nothing, expected keys and values"),
    (["-c", "{unknown}"], 2, "modle"),
    (["-c", "nowhere.yaml"], 2, "No recipe nowhere.yaml"),
    (["--seed_everything=-1"], 2, "seed_everything"),
    (["--seed_everything=4294967296"], 2, "seed_everything must lie in 0..4294967295"),
    (["--threads=0"], 2, "threads"),
    (["--threads=1000000"], 2, "threads must lie in 1.."),
    ([MODEL + "seed=3"], 2, "model.seed is set by seed_everything"),
    (["-c", "{linked}"], 2, "model.num_classes is set by the data set"),
    (["-c", "{list}"], 2, "trainer holds [1], expected keys and values"),
    (["-c", "{key}"], 2, "key.yaml, line 1: a key must be a word"),
    (["-c", "{cycle}"], 2, "cycle.yaml contains itself"),
    (["--config={twice}"], 2, "twice.yaml, line 2: threads is set twice"),
    ([MODEL + "experts.root="], 2, "model.experts.root must name a folder"),
    (["--trainer.precision=64"], 2, "trainer.precision must stay None, got 64"),
    (["--trainer.gradient_clip_val=1"], 2, "set model.image_gradient_clip"),
    (["--trainer.limit_val_batches=0"], 2, "trainer.limit_val_batches must stay None, got 0"),
    (["--trainer.fast_dev_run=true"], 2, "use configs/with/smoke.yaml to try a recipe"),
    (["--trainer.devices=2"], 2, "model.segments_per_step must be a multiple of the 2 processes, got 1: set it to 2"),
    (["--trainer.strategy=fsdp"], 2, "trainer.strategy must be auto or ddp, got fsdp"),
    (["--trainer.strategy=deepspeed_stage_2"], 2, "trainer.strategy must be auto or ddp, got deepspeed_stage_2"),
    (["--trainer.strategy=ddp_spawn", "--trainer.devices=2"], 2, "trainer.strategy must be auto or ddp, got ddp_spawn"),
    (["--trainer.strategy=lightning.pytorch.strategies.FSDPStrategy"], 2, "trainer.strategy must be auto or ddp"),
    (["--trainer.sync_batchnorm=true"], 2, "trainer.sync_batchnorm must stay False, got True"),
    (["--trainer.use_distributed_sampler=true"], 2, "trainer.use_distributed_sampler must stay False, got True"),
    (
        ["--trainer.max_steps=-1"],
        2,
        "trainer.max_steps must be a positive multiple of trainer.val_check_interval (100)",
    ),
    (["--trainer.max_steps=150"], 2, "so that the last step is evaluated; got 150"),
    (
        ["--trainer.val_check_interval=0"],
        2,
        "val_check_interval must be a whole number of outer steps, at least 1; got 0",
    ),
    (["--trainer.val_check_interval=0.5"], 2, "must be a whole number of outer steps, at least 1; got 0.5"),
    (["--trainer.callbacks=[{class_path: ClosingTable}]"], 2, "trainer.callbacks must hold one Evaluation, got 0"),
    (["--data.validation_fraction=1"], 2, "data.validation_fraction must lie between 0 and 1, got 1.0"),
    (["--data.source=Digitz"], 2, "data.source: no class Digitz; expected Digits, ImageFolder, Npz, MNIST"),
    ([MODEL + "images_per_class=200"], 3, "200 real images per class are asked for, class 0 has 128"),
    (["--data.max_train_images=5"], 3, "data.max_train_images must lie in 10..1293 for digits, got 5"),
    (["--data.source=Npz", DATA + "path=nowhere.npz"], 3, "No such file: nowhere.npz"),
    (["--data.source=Npz", DATA + "path={broken}"], 3, "is no readable .npz file"),
    (["--data.source=ImageFolder", DATA + "root=nowhere", DATA + "image_size=8"], 3, "No folder nowhere/train"),
    (["--data.source=MNIST", DATA + "root=nowhere", DATA + "download=false"], 3, "No MNIST in nowhere"),
    (["--ckpt_path=last"], 4, "No run to resume in checkpoints/digits"),
    (
        ["--ckpt_path={broken}", "--allow_changes=model.init"],
        2,
        "allow_changes takes model.lr_images, model.lr_student_lr",
    ),
    (["--ckpt_path=nowhere.ckpt"], 4, "No checkpoint nowhere.ckpt"),
    ([MODEL + "lr_im=1"], 2, "Option 'lr_im' is not accepted"),
    (["--ckpt=last"], 2, "unrecognized arguments: --ckpt=last"),
    (["frobnicate"], 2, "unrecognized arguments: frobnicate"),
    ([MODEL + "images_per_class=1.5"], 2, "model.images_per_class: Expected a <class 'int'>. Got value: 1.5"),
    ([MODEL + "images_per_class=true"], 2, "model.images_per_class: Expected a <class 'int'>. Got value: True"),
    ([MODEL + "network.init_args.width=-3"], 2, "model.network.width must be at least 1, got -3"),
    (["--trainer.logger.class_path=os.system"], 2, "Import path os.system does not correspond to a subclass of Logger"),
    (["--trainer.max_steps=1e3"], 2, "trainer.max_steps: Expected a <class 'int'>. Got value: 1000.0"),
    (["-c", "{aliases}"], 2, "aliases.yaml holds more than 100,000 values: its aliases multiply"),
    (["-c", "{deep}"], 2, "deep.yaml is nested too deeply"),
    (["-c", "{word}"], 2, "word.yaml holds a str, expected keys and values"),
    (["-c", "{code}"], 2, "code.yaml is no YAML: could not determine a constructor for the tag"),
    (["-c", "{number}"], 2, "Key must be a string, got: 1"),
    (["-c", "loop"], 2, "No recipe loop"),
    (["--data=pickle.npz"], 2, "'utf-8' codec can't decode"),
    (["--data.source=Npz", DATA + "path=loop"], 3, "No such file: loop (data.source.path)"),
    (["--data.source=Npz", DATA + "path=pipe"], 3, "No such file: pipe (data.source.path)"),
    (["--data.source=Npz", DATA + "path=pickle.npz"], 3, "pickle.npz is no readable .npz file"),
    (["--data.source=Npz", DATA + "path=objects.npz"], 3, "x_train of objects.npz must be uint8"),
    (["--data.source=ImageFolder", DATA + "root=loop", DATA + "image_size=8"], 3, "No folder loop/train"),
    (["--ckpt_path=best"], 4, "No run to resume in checkpoints/digits: none has checkpoints/best.ckpt"),
    (["--ckpt_path=loop"], 4, "No checkpoint loop"),
    (["--ckpt_path=."], 4, "No checkpoint ."),
    (["--ckpt_path=pickle.ckpt"], 4, "pickle.ckpt is no readable checkpoint"),
    ([MODEL + "experts.root=loop/a"], 4, "Cannot write to loop/a: "),
    (["--trainer.logger.init_args.save_dir=loop"], 4, "Cannot write to loop: "),
    ([MODEL + "experts.root=" + "x" * 300], 4, "File name too long"),
    (["--ckpt_path=http://localhost/x.ckpt"], 4, "No checkpoint http:/localhost/x.ckpt. Give a local .ckpt file"),
]


class Payload:
    """A pickle that leaves a file where it is loaded as code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_a_wrong_input_is_one_line_with_the_right_exit_code_and_leaves_nothing(
    arguments: list[str], code: int, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host, dm = "model: {init_args: {objective: %s}}", "{class_path: DistributionMatching, init_args: {augment: null}}"
    information = "model: {init_args: {information: {class_path: InformationTerm, init_args: {%s}}}}"
    files = {
        "tau": information % "critic: {class_path: InfoNCECritic, init_args: {temperature: 0}}",
        "beta": information % "layer_decay: 0.5",
        "layers": information % "layers: [conv]",
        "head": information % "embedding: Lin",
        "width": information % "embedding: {class_path: LinearHead, init_args: {dim: 0}}",
        "own": host % f"{dm}, information: {{class_path: InformationTerm, init_args: {{networks: own}}}}",
        "soft": host % f"{dm}, soft_labels: {{lr: 1}}",
        "window": host % "{class_path: PerformanceMatching, init_args: {unroll_steps: 2, window: 3}}",
        "clip": "model: {init_args: {image_gradient_clip: {class_path: MovingClip, init_args: {factor: 0}}}}",
        "twice": "threads: 1\nthreads: 2",
        "broken": "threads: [",
        "empty": "",
        "unknown": "modle: 3",
        "linked": "model: {init_args: {num_classes: 3}}",
        "list": "trainer: [1]",
        "key": "? [a, b]\n: 1",
        "cycle": "model: &model {init_args: *model}",
        "aliases": "a: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 50)),
        "deep": "a: " + "[" * 3000,
        "word": "threads",
        "code": "!!python/object/apply:os.system ['touch pwned']",
        "number": "1: 2",
    }
    paths = {name: here / f"{name}.yaml" for name in files}
    for name, path in paths.items():
        path.write_text(files[name])
    given = [
        argument.format(**paths) if argument.startswith(("{", DATA, "--config=")) else argument
        for argument in arguments
    ]
    (here / "loop").symlink_to("loop")
    os.mkfifo(here / "pipe")
    for name in ("pickle.npz", "pickle.ckpt"):
        torch.save(Payload(), here / name, _use_new_zipfile_serialization=False)
    objects = np.array([Payload()], dtype=object)
    np.savez(here / "objects.npz", x_train=objects, y_train=objects, x_test=objects, y_test=objects)
    before = sorted(here.iterdir())
    assert main(["fit", "-c", str(DIGITS), *given]) == code
    stderr = capsys.readouterr().err
    assert stderr.startswith("mim4dd: error: ")
    assert stderr.count("\n") == 1
    assert message in stderr
    assert len(stderr) < 500
    assert sorted(here.iterdir()) == before


def test_validate_without_a_run_says_what_to_add(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-c", str(DIGITS)]) == 4
    assert "validate needs something to evaluate: add --ckpt_path last or best" in capsys.readouterr().err
    assert not list(here.iterdir())


def test_experts_of_another_recipe_are_refused_and_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = CONFIGS / "experts/digits.yaml"
    assert main(["fit", "-c", str(experts), *tiny(experts)]) == 0
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert main(["fit", "-c", str(DIGITS), "--model.init_args.experts.training.lr=0.1"]) == 4
    assert (
        "The trajectories of checkpoints/experts/digits/manifest.json do not fit: their training.lr is 0.05, "
        "this run's is 0.1." in capsys.readouterr().err
    )
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def damaged_experts(folder: Path, damage: str) -> None:
    """Two finished experts of the recipe, the first one with a parameter that is no number, or of another shape."""
    experts = CONFIGS / "experts/digits.yaml"
    assert main(["fit", "-c", str(experts), *tiny(experts)]) == 0
    path = folder / "checkpoints/experts/digits/expert_0000.safetensors"
    trajectory = load_file(path)["trajectory"]
    trajectory[1, 2] = torch.nan
    save_file({"trajectory": trajectory if damage == "nan" else torch.zeros(5, 7)}, path)
    manifest = path.parent / "manifest.json"
    content = json.loads(manifest.read_text())
    content["experts"]["0"]["sha256"] = sha256(path)
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("nan", "expert_0000.safetensors holds parameters that are not finite: the expert diverged"),
        ("shape", "expert_0000.safetensors holds a trajectory of shape (5, 7), expected (5, 10"),
    ],
)
def test_trajectories_that_are_no_experts_are_refused_before_a_run_begins(
    damage: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged_experts(here, damage)
    before = sorted(here.rglob("*"))
    capsys.readouterr()
    assert main(["fit", "-c", str(DIGITS)]) == 4
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_trajectories_of_another_architecture_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = CONFIGS / "experts/digits.yaml"
    assert main(["fit", "-c", str(experts), *tiny(experts)]) == 0
    assert main(["fit", "-c", str(DIGITS), "--model.init_args.network.init_args.width=16"]) == 4
    assert "do not fit: their network.width is 32, this run's is 16." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images.pt", "labels.pt", "lr.pt"])
def test_a_pickle_among_foreign_tensors_is_not_loaded(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for each, content in (
        ("images", torch.zeros(10, 1, 8, 8)),
        ("labels", torch.arange(10)),
        ("lr", torch.tensor(1.0)),
    ):
        torch.save(content, here / f"{each}.pt")
    torch.save({"images": Payload()}, here / name)
    assert main(["test", "-c", str(DIGITS), "--distilled=."]) == 4
    stderr = capsys.readouterr().err
    assert f"{name} is no readable file of tensors" in stderr
    assert stderr.count("\n") == 1
    assert not (here / "pwned").exists()


def test_paths_with_spaces_and_letters_of_any_script_are_paths(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = here / "my döcs/数据 [1] {x}, 'q' #2"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    (place / "my recipe é.yaml").write_text(DIGITS.read_text())
    labels = np.arange(200) % 10
    images = noise(200, 8, 8)
    np.savez(place / "bilder ü.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    arguments = ["-c", "my recipe é.yaml", *tiny(DIGITS), "--data.source=Npz", DATA + "path=bilder ü.npz"]
    arguments += [MODEL + "experts.root=exp érts/β", "--trainer.logger.init_args.save_dir=läufe hier"]
    assert main(["fit", *arguments]) == 0
    assert main(["validate", *arguments, "--ckpt_path=best"]) == 0
    assert main(["fit", *arguments, f"--ckpt_path={place}/läufe hier/digits/version_0/checkpoints/last.ckpt"]) == 0
    assert main(["validate", *arguments, f"--distilled={place}/läufe hier/digits/version_0/distilled/last"]) == 0
    assert len(list((place / "exp érts/β").glob("expert_*"))) == 2
    assert [path.name for path in (place / "läufe hier/digits").iterdir()] == ["version_0"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x04cos\nsystem\n(S'true'\ntR."])
def test_a_broken_or_hostile_checkpoint_is_one_line(
    content: bytes, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "x.ckpt").write_bytes(content)
    assert main(["test", "-c", str(DIGITS), "--ckpt_path=x.ckpt"]) == 4
    stderr = capsys.readouterr().err
    assert "x.ckpt is no readable checkpoint" in stderr
    assert stderr.count("\n") == 1


def test_ctrl_c_is_answered_without_a_traceback_while_libraries_are_imported(here: Path) -> None:
    program = subprocess.Popen([sys.executable, "-m", "mim4dd_pl", "check"], stderr=subprocess.PIPE, cwd=here)
    time.sleep(1.0)  # of five
    program.send_signal(signal.SIGINT)
    assert program.communicate(timeout=60)[1] == b""
    assert program.returncode == -signal.SIGINT


def test_a_kept_recipe_is_read_wherever_its_classes_lay(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*recipes: str) -> str:
        with pytest.raises(SystemExit):
            main(["fit", *(f"--config={recipe}" for recipe in recipes), "--print_config"])
        return capsys.readouterr().out

    kept = printed(str(DIGITS), str(CONFIGS / "with/mutual_information.yaml"))
    moved = re.sub(r"mim4dd_pl\.(?:\w+\.)*(\w+)", r"mim4dd_pl.elsewhere.\1", kept)
    assert moved.count("mim4dd_pl.elsewhere.") > 5
    (here / "config.yaml").write_text(moved)
    assert printed("config.yaml") == kept

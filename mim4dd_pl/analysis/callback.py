"""A look at a distilled set: what students learn from it, where its images lie, and whether they repeat real ones."""

import json
import logging
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from mim4dd_pl.analysis import findings
from mim4dd_pl.analysis.drawing import heat_maps, layer_names, neighbour_rows, planes
from mim4dd_pl.analysis.embedding import principal_components, tsne
from mim4dd_pl.analysis.neighbours import Neighbours
from mim4dd_pl.basics.files import replacing
from mim4dd_pl.basics.runs import RunFolder
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.run import data_of, find, run_folder
from mim4dd_pl.callbacks.tables import print_lines
from mim4dd_pl.data.sets import ImageSet
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.stored.distilled import Distilled

_log = logging.getLogger(__name__)

CAPTIONS = {
    "cka.png": "How alike the layers of an expert (rows, trained on real images) and of a student (columns, trained on "
    "the distilled set, or on as many random real images) are on the same held-out images, 1 being alike up to "
    "rotation and scale: where the left panel is brighter, the distilled set teaches more of what an expert sees.",
    "neighbours.png": "Learned images above the training images nearest to them in pixels and in features; the number "
    "is the distance in units of the usual one between nearest training images, so that 0 is a copy.",
    "tsne.png": "t-SNE of the features of real images (dots) and learned ones (diamonds) in each layer: a diamond "
    "among dots of its colour looks like its class to the network; distances between groups mean nothing.",
}
"""How to read each figure."""


class Analysis(L.Callback):
    """Looks at the distilled set once, at the end of a fit or a test, and writes a folder ``analysis``.

    It holds figures with their captions and ``analysis.json``: CKA between an expert and a student (``cka.png``), t-SNE
    of real and learned images in every layer (``tsne.png``), nearest training images (``neighbours.png``), diversity
    and overlap of the classes. Features are those of the first expert after its last epoch, where there is one, else of
    a student trained on the set, as :class:`Evaluation` trains them; without an expert there is no CKA. A fit shows the
    figures on TensorBoard too, and the features of the last layer in its projector.

    Args:
        tsne: Draw t-SNE.
        projector: Fill TensorBoard's projector.
        real_images: At most so many real images in t-SNE, projector and CKA.

    Attributes:
        results: A folder for what a ``test`` finds; without one, it looks at nothing.
    """

    def __init__(self, tsne: bool = True, projector: bool = True, real_images: int = 1000) -> None:
        if real_images < 10:
            raise ValueError(f"real_images must be at least 10, got {real_images}.")
        self.tsne = tsne
        self.projector = projector
        self.real_images = real_images
        self.results: RunFolder | None = None

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        run = run_folder(trainer)
        if trainer.is_global_zero:
            pl_module.to(trainer.strategy.root_device)  # Lightning has put it on the CPU
            self._analyse(cast(DistillationModule, pl_module), run)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.results is not None and trainer.is_global_zero:
            self._analyse(cast(DistillationModule, pl_module), self.results)

    def _analyse(self, module: DistillationModule, run: RunFolder) -> None:
        _log.info("Analysing the distilled set ...")
        stream = module.stream.at("analysis")
        distilled = find(module.trainer, Evaluation).evaluated(module).decoded()
        expert = findings.first_expert(module)
        student = findings.student_on(module, distilled.training_set(module.device), float(distilled.student_lr))
        seen_by = student if expert is None else expert
        if not seen_by.theta.isfinite().all():
            _log.info("No analysis: the student that it looks through diverged.")
            return
        numbers, neighbours = findings.measure(module, distilled, seen_by, stream.at("pool"))
        figures = {"neighbours.png": _draw_neighbours(data_of(module).train, distilled, neighbours)}
        cka = findings.compare_layers(module, distilled, expert, student, self.real_images, stream.at("held out"))
        if cka is not None:
            panels = {"student on distilled images": cka["values"], "student on random real images": cka["control"]}
            figures["cka.png"] = heat_maps(panels, "expert on real images")
            names = layer_names(len(cka["values"]))
            numbers["cka"] = {
                "rows": names,
                "columns": names,
                **{name: findings.plain(each) for name, each in cka.items()},
            }
        shown = findings.show(module, distilled, seen_by, self.real_images, stream.at("shown"))
        classes = distilled.classes[: findings.MOST_CLASSES]
        if self.tsne:
            points = [tsne(layer, stream.at("t-SNE", number)) for number, layer in enumerate(shown.layers)]
            figures["tsne.png"] = planes(points, shown.labels, shown.learned, classes)
        about = {
            "features_of": "the first student" if expert is None else "the first expert",
            **numbers,
            "captions": {name: caption for name, caption in CAPTIONS.items() if name in figures},
            "distilled": dict(distilled.facts),
        }
        _write(run, figures, about)
        print_lines({"analysis": run.analysis})
        self._log(module, run.analysis, shown, classes)

    def _log(self, module: DistillationModule, folder: Path, shown: findings.Shown, classes: tuple[str, ...]) -> None:
        """The figures and the projector on TensorBoard."""
        step = module.outer_steps
        for logger in module.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for path in sorted(folder.glob("*.png")):
                    pixels = np.asarray(Image.open(path).convert("RGB"))
                    logger.experiment.add_image(f"analysis/{path.stem}", pixels, step, dataformats="HWC")
                if self.projector:
                    _project(logger.experiment, shown, classes, step)


def _draw_neighbours(train: ImageSet, distilled: Distilled, found: dict[str, Neighbours]) -> Figure:
    """The first learned image of up to ten classes above its nearest training images."""
    first = {label: rows[0] for label, rows in list(distilled.shown().items())[: findings.MOST_CLASSES]}
    chosen = list(first.values())
    rows, ratios = {"learned": distilled.pixels(chosen)}, {}
    for name, each in found.items():
        rows[f"nearest in\n{name}"] = findings.pixels_of(train, each.rows[chosen])
        ratios[f"nearest in\n{name}"] = each.ratio[chosen]
    return neighbour_rows(rows, [distilled.classes[label] for label in first], ratios)


def _project(writer: Any, shown: findings.Shown, classes: tuple[str, ...], step: int) -> None:
    """Fifty principal components of some images' features, with class, kind and a small picture of each."""
    # One line of a table for each: a name may hold anything.
    names = [" ".join(classes[label].split()) for label in shown.labels.tolist()]
    kinds = ["learned" if learned else "real" for learned in shown.learned]
    writer.add_embedding(
        principal_components(shown.layers[-1], 50).cpu(),
        metadata=list(zip(names, kinds, strict=True)),
        metadata_header=["class", "image"],
        label_img=adaptive_avg_pool2d(shown.pixels, min(64, shown.pixels.shape[-1])),
        global_step=step,
        tag="analysis",
    )


def _write(run: RunFolder, figures: dict[str, Figure], about: dict[str, Any]) -> None:
    """The folder as a whole, or nothing."""
    with replacing(run.analysis) as temporary:
        temporary.mkdir()
        for name, figure in figures.items():
            figure.savefig(temporary / name, dpi=120)
        text = json.dumps(about, indent=2, allow_nan=False)
        (temporary / run.findings.name).write_text(text + "\n", encoding="utf-8")

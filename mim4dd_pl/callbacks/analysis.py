"""A look at a distilled set: what students learn from it, where its images lie, and whether they repeat real ones."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mim4dd_pl.artefact import Distilled
from mim4dd_pl.callbacks.evaluation import Evaluation
from mim4dd_pl.callbacks.findings import (
    MOST_CLASSES,
    Plane,
    compare_layers,
    draw_plane,
    first_expert,
    measure,
    pixels_of,
    planes_of,
    student_on,
)
from mim4dd_pl.callbacks.learned import data_of, find
from mim4dd_pl.callbacks.tables import print_lines
from mim4dd_pl.embedding import principal_components
from mim4dd_pl.features import Features
from mim4dd_pl.files import replacing
from mim4dd_pl.modules import DistillationModule
from mim4dd_pl.neighbours import Neighbours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

CAPTIONS = {
    "cka.png": "How alike (CKA, 1 is alike up to rotation and scale) the layers of an expert, trained on real images, "
    "and of a student, trained on the distilled set or on as many random real images, are on the same held-out images: "
    "the brighter the left panel beside the right one, the more of the real representation the set teaches.",
    "tsne.png": "t-SNE of the features of real images (dots) and learned ones (diamonds) in each layer: a diamond among "
    "the dots of its colour looks like its class; distances between groups mean nothing.",
    "neighbours.png": "Learned images above the training images nearest to them in pixels and in features; the number "
    "is the distance in units of the usual one between nearest training images, 0 for a copy.",
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
            raise ValueError(f"Analysis.real_images must be at least 10, got {real_images}.")
        self.tsne = tsne
        self.projector = projector
        self.real_images = real_images
        self.results: Path | None = None

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._analyse(cast(DistillationModule, pl_module), Path(trainer.log_dir or trainer.default_root_dir))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.results is not None:
            self._analyse(cast(DistillationModule, pl_module), self.results)

    def _analyse(self, module: DistillationModule, parent: Path) -> None:
        from mim4dd_pl.callbacks import drawing  # matplotlib is slow to import, and needed here only

        _log.info("Analysing the distilled set ...")
        stream = module.stream.at("analysis")
        distilled = find(module.trainer, Evaluation).evaluated(module)
        expert = first_expert(module)
        student = student_on(module, distilled.training_set(module.device), float(distilled.student_lr))
        seen_by = student if expert is None else expert
        numbers, neighbours = measure(module, distilled, seen_by, stream.at("pool"))
        figures = {"neighbours.png": self._neighbours(module, distilled, neighbours)}
        cka = None
        if expert is None:
            _log.info("No CKA: it compares students with an expert, and none is stored.")
        else:
            cka = compare_layers(module, distilled, expert, student, self.real_images, stream.at("held out"))
        if cka is not None:
            panels = {"student on distilled images": cka["values"], "student on random real images": cka["control"]}
            figures["cka.png"] = drawing.heat_maps(panels, "expert on real images")
            names = drawing.layer_names(len(cka["values"]))
            numbers["cka"] = {"rows": names, "columns": names, **{name: each.tolist() for name, each in cka.items()}}
        plane = draw_plane(module, distilled, self.real_images, stream.at("plane"))
        classes = distilled.classes[:MOST_CLASSES]
        if self.tsne:
            points = planes_of(plane, seen_by, stream.at("t-SNE"))
            figures["tsne.png"] = drawing.planes(points, plane.labels, plane.learned, classes)
        about = {
            "features_of": "the first student" if expert is None else "the first expert",
            **numbers,
            "captions": {name: CAPTIONS[name] for name in sorted(figures)},
            "distilled": dict(distilled.facts),
        }
        _write(parent / "analysis", figures, about)
        print_lines({"analysis": parent / "analysis"})
        self._show(module, parent / "analysis", plane, classes, seen_by)

    @staticmethod
    def _neighbours(module: DistillationModule, distilled: Distilled, found: dict[str, Neighbours]) -> "Figure":
        """The first learned image of up to ten classes above its nearest training images."""
        from mim4dd_pl.callbacks import drawing

        train = data_of(module).train
        first = {label: rows[0] for label, rows in list(distilled.shown().items())[:MOST_CLASSES]}
        chosen = list(first.values())
        titles = {f"nearest in\n{name}": each for name, each in found.items()}
        rows = {title: pixels_of(train, each.index[chosen]) for title, each in titles.items()}
        ratios = {title: each.ratio[chosen].tolist() for title, each in titles.items()}
        names = [distilled.classes[label] for label in first]
        return drawing.neighbour_rows({"learned": distilled.pixels(chosen), **rows}, names, ratios)

    def _show(
        self, module: DistillationModule, folder: Path, plane: Plane, classes: tuple[str, ...], seen_by: Features
    ) -> None:
        """The figures and the projector on TensorBoard."""
        step = module.outer_steps
        for logger in module.trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                continue
            for path in sorted(folder.glob("*.png")):
                with Image.open(path) as picture:
                    shown = np.asarray(picture.convert("RGB"))
                logger.experiment.add_image(f"analysis/{path.stem}", shown, step, dataformats="HWC")
            if self.projector:
                _project(logger.experiment, plane, classes, seen_by.deepest(plane.images), step)


def _project(writer: Any, plane: Plane, classes: tuple[str, ...], features: Tensor, step: int) -> None:
    """Fifty principal components of some images' features, with class, kind and a small picture of each."""
    kinds = [("real", "learned")[each] for each in plane.learned.tolist()]
    # One line of a table for each: a name may hold anything.
    names = [" ".join(classes[label].split()) for label in plane.labels.tolist()]
    side = min(64, plane.pixels.shape[-1])
    writer.add_embedding(
        principal_components(features, 50).cpu(),
        metadata=list(zip(names, kinds, strict=True)),
        metadata_header=["class", "image"],
        label_img=adaptive_avg_pool2d(plane.pixels, side),
        global_step=step,
        tag="analysis",
    )


def _write(folder: Path, figures: dict[str, "Figure"], about: dict[str, Any]) -> None:
    """The folder as a whole, or nothing."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        for name, figure in figures.items():
            figure.savefig(temporary / name, dpi=120)
        text = json.dumps(about, indent=2, allow_nan=False)
        (temporary / "analysis.json").write_text(text + "\n", encoding="utf-8")

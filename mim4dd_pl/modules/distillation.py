"""Distillation: learn images on which a student follows the experts, and that share information with real ones."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import lightning as L
import torch
from torch import Tensor

from mim4dd_pl.basics.errors import StoredFileError, UserError, check_positive
from mim4dd_pl.basics.names import SKIPPED_STEPS
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.data.sets import ImageSet
from mim4dd_pl.engine.compiled import Compile, derivatives, worth_compiling
from mim4dd_pl.engine.derivatives import Derivatives, Work
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.clipping import Clip, FixedClip
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.experts import ExpertTrainer, open_store
from mim4dd_pl.modules.gradients import Gradients, gathered, information_batch, log_values, segment_gradients
from mim4dd_pl.modules.lightning import datamodule_of, keep_buffers_local
from mim4dd_pl.modules.optimization import OuterOptimizer, OuterOptimizers, all_finite, keep_settings, set_gradients
from mim4dd_pl.modules.optimization import step as step_all
from mim4dd_pl.modules.settings import check_experts, check_information
from mim4dd_pl.modules.share import in_order, own_share
from mim4dd_pl.modules.state import RunState
from mim4dd_pl.modules.warm_up import warm_up
from mim4dd_pl.networks.base import NetworkFactory
from mim4dd_pl.objectives.base import Objective, Scene
from mim4dd_pl.objectives.sampling import fresh
from mim4dd_pl.objectives.synthetic import SoftLabels, SyntheticImages
from mim4dd_pl.population.experts import Experts
from mim4dd_pl.population.students import calibrated
from mim4dd_pl.population.training import at_once
from mim4dd_pl.stored.segments import SegmentReader, draw_segment
from mim4dd_pl.stored.trajectories import Segment, TrajectoryStore

InformationFactory = Callable[[Sequence[ImageShape], int], InformationTerm]
"""(shapes of the network's feature maps, num_classes) -> the information term."""

_log = logging.getLogger(__name__)


class DistillationModule(L.LightningModule):
    r"""Minimises host loss + lambda x information term over the synthetic images and the student's learning rate.

    One step has ``segments_per_step`` parts. In each, the host says how far networks that saw the synthetic images are
    from what they should be, for trajectory matching along a segment of an expert's trajectory; the information term
    contrasts features of synthetic and real images. Images and student learning rate move by one optimiser, heads and
    critic by Adam.

    Every random number is drawn from (seed, purpose, step, segment), so a resumed run repeats the uninterrupted one.
    Of W processes each computes every W-th segment; all of them add up the gradients in the order of the segments, and
    make the same step. On CPUs, where segments are computed one by one, their number changes no bit of it.

    Args:
        network: Builds the architecture from (image_shape, num_classes).
        image_shape: (c, h, w) of one image; the data set sets it.
        num_classes: C; the data set sets it.
        objective: The host.
        experts: Recipe and folder of the experts; those that the host reads are trained first where they are missing.
        images_per_class: ipc, stored images of each class.
        formation: f: each stored image holds f x f smaller ones, and students train on these, enlarged. 1 by default:
            they train on the stored images.
        init: Start the images from random real images of their class, or from standard normal noise.
        soft_labels: Learn labels too, from the first expert's view of the initial images; none by default.
        information: Builds the information term; none by default.
        lr_images: Learning rate of the pixels.
        lr_student_lr: Learning rate of the student's learning rate.
        momentum: Of both, with SGD.
        student_lr: Initial student learning rate alpha.
        min_student_lr: alpha is kept at or above this.
        optimizer: Of images and student learning rate: SGD with ``momentum``, or Adam.
        image_gradient_clip: Longest pixel gradient of a step, or how it is found; longer ones are shortened. Not
            clipped by default.
        image_average: Decay of a moving average of the images, which is evaluated and kept in their place; none by
            default.
        clamp_images: Keep pixels in the range that real ones can have; they are free by default.
        segments_per_step: Segments whose gradients are averaged in a step; a multiple of the processes.
        compile: Compile the steps of experts, students and inner loop: ``auto`` where a run is long enough to pay for
            it, ``true`` or ``false``.
        half_precision: Compute experts, students and features in bfloat16, as Lightning's ``bf16-mixed`` does: two to
            three times as fast where the processor has it. An unroll and gradient matching stay in float32.
        seed: Of the whole distillation.

    Attributes:
        segment_start: The trajectory buffers: expert parameters at epoch t of each segment of a step, shape (T, P).
        segment_target: Expert parameters at epoch t + M, shape (T, P).
    """

    data: ImageDataModule
    store: TrajectoryStore
    real: ImageSet
    derivatives: Derivatives
    segment_start: Tensor
    segment_target: Tensor

    def __init__(
        self,
        network: NetworkFactory,
        image_shape: ImageShape,
        num_classes: int,
        objective: Objective,
        experts: Experts,
        images_per_class: int = 1,
        formation: int = 1,
        init: Literal["real", "noise"] = "real",
        soft_labels: SoftLabels | None = None,
        information: InformationFactory | None = None,
        lr_images: float = 100.0,
        lr_student_lr: float = 1e-5,
        momentum: float = 0.5,
        student_lr: float = 0.01,
        min_student_lr: float = 1e-6,
        optimizer: OuterOptimizer = "sgd",
        image_gradient_clip: Clip | float | None = None,  # in this order the parser gives the reason of the clip
        image_average: float | None = None,
        clamp_images: bool = False,
        segments_per_step: int = 1,
        compile: Compile = "auto",
        half_precision: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_positive(segments_per_step=segments_per_step)
        check_experts(objective, experts, init, soft_labels)
        lr_labels = 0.0 if soft_labels is None else soft_labels.lr
        self.outer = OuterOptimizers(optimizer, momentum, lr_images, lr_student_lr, lr_labels)
        clip = image_gradient_clip
        self.image_gradient_clip = FixedClip(clip) if isinstance(clip, int | float) else clip
        self.network = FlatNetwork(network, image_shape, num_classes)
        self.trained_network = self.network.in_half_precision() if half_precision else self.network
        self.objective, self.experts, self.init, self.soft_labels = objective, experts, init, soft_labels
        self.synthetic = SyntheticImages(
            image_shape,
            num_classes,
            images_per_class,
            student_lr,
            min_student_lr,
            soft=soft_labels is not None,
            image_average=image_average,
            formation=formation,
        )
        self.clamp_images = clamp_images
        objective.check(self.synthetic.decoded_per_class, num_classes)
        self.stream = Stream(seed)
        self.information: InformationTerm | None = None
        if information is not None:
            with self.stream.at("heads").as_global():
                self.information = information(self.network.layer_shapes(), num_classes)
            check_information(self.information, objective, segments_per_step)
        self.segments: SegmentReader | None = None  # of hosts that read experts
        for name in ("segment_start", "segment_target"):
            room = torch.empty(segments_per_step, self.network.num_parameters)
            self.register_buffer(name, room, persistent=False)
        keep_buffers_local(self, ["segment_start", "segment_target"])
        self.segments_per_step, self._share = segments_per_step, range(segments_per_step)
        self.compiles: Compile = compile  # Module.compile is a method
        self.state = RunState()
        self.whole = True  # all of the parameters have made the same steps

    def check_processes(self, count: int) -> None:
        """Refuse segments that so many processes cannot share equally."""
        if self.segments_per_step % count:
            raise UserError(
                f"model.segments_per_step must be a multiple of the {count} processes, got {self.segments_per_step}: "
                f"set it to {count}, or trainer.devices and trainer.num_nodes to less."
            )

    # --- before the first step

    def setup(self, stage: str) -> None:
        """Initial pixels: before strategies copy the module to other processes."""
        if stage == "fit":
            self.attach(datamodule_of(self.trainer))

    def attach(self, data: ImageDataModule) -> None:
        """Open the experts and set the initial pixels; raises before anything is written if ``data`` does not do."""
        if getattr(self, "data", None) is data:
            return
        if self.clamp_images:
            if data.zca:
                raise UserError("Whitened pixels have no range: set data.zca or model.clamp_images to false.")
            self.synthetic.limits = data.train.normalization.limits().to(self.device)
        stream = self.stream.at("initial images")
        if self.init == "noise":
            self.synthetic.start_from_noise(stream)
        else:
            chosen = data.train.per_class(self.synthetic.decoded_per_class, stream.generator())
            self.synthetic.start_from_real(data.train.batch(chosen).images)
        self.open_experts(data)

    def open_experts(self, data: ImageDataModule) -> None:
        """Open the experts alone; raises StoredFileError if the folder holds others."""
        self.store = open_store(self.experts, self.network, data)
        self.data = data

    @property
    def needs_experts(self) -> bool:
        """Whether a fit reads experts, and trains those that are missing."""
        return self.objective.reads_experts

    @torch.no_grad()
    def seen_by_expert(self, images: Tensor) -> Tensor | None:
        """Logits of images (S, c, h, w) by the first expert after its last epoch; None if it is not there.

        Of several processes the first looks, for all: they might not find the same files, and a GPU may round
        differently every time.
        """
        seen = None
        if self.trainer.is_global_zero and 0 in self.store.finished:
            expert = self.store.segment(0, 0, self.experts.training.epochs).target.to(self.device)
            train = self.data.train.to(self.device)
            statistics = calibrated(self.network, expert, train, self.experts.training.batch_size)
            parts = images.split(self.data.evaluation_batch_size)
            seen = torch.cat([self.network(expert, part, statistics) for part in parts]).cpu()
        seen = self.trainer.strategy.broadcast(seen)
        return None if seen is None else seen.to(self.device)

    def on_fit_start(self) -> None:
        self.real = self.data.train.to(self.device)
        self._share = own_share(self.trainer, self.segments_per_step)
        if (read := self.objective.epochs) is not None:
            training = ExpertTrainer(
                self.experts, self.store, self.trained_network, self.data, self.trainer, self.compiles
            )
            if training.missing() and (epochs := self.experts.training.epochs) > read.last:
                _log.info("Experts get %d epochs, segments read %d of them.", epochs, read.last)
            while training.train_some():
                pass
            draw = partial(draw_segment, self.store, self.experts.num_experts, read, self.stream)
            self.segments = SegmentReader(draw, self._share)
        if self.soft_labels is not None and self.state.loaded_step is None:
            self.synthetic.start_labels_from(cast(Tensor, self.seen_by_expert(self.synthetic.decoded().images)))
        self.derivatives = self.choose_derivatives(self.trainer.max_steps)
        if (term := self.information) is not None and term.warm_up_steps and self.state.loaded_step is None:
            network, stream = self.derivatives.network, self.stream.at("warm up")
            warm_up(term, network, self.real, self._network_at_first, stream, self.trainer)

    def _network_at_first(self, stream: Stream) -> Tensor:
        """Parameters (P,) as a segment of step 0 could show them: of an expert, or fresh ones."""
        if (read := self.objective.epochs) is None:
            return fresh(self.network, [stream], self.synthetic.images)[0]
        return draw_segment(self.store, self.experts.num_experts, read, stream, 0, 0).target.to(self.device)

    def on_fit_end(self) -> None:
        if self.segments is not None:
            self.segments.close()

    def choose_derivatives(self, steps: int) -> Derivatives:
        """Compiled or plain derivatives of the inner loop, for so many outer steps."""
        work = self.objective.work(self.synthetic.decoded_per_class, self.network.num_classes)
        if self.state.compiled is None:
            whole = work.times(steps * self.segments_per_step)
            self.state.compiled = worth_compiling(self.network, self.compiles, whole)
        return derivatives(self._matched_network(work), self.state.compiled, work.batch_size, self.device)

    def _matched_network(self, work: Work) -> FlatNetwork:
        """In half precision for hosts that compute features alone."""
        return self.network if work.gradients or work.sweeps else self.trained_network

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = self.state
        checkpoint.update(compiled=state.compiled, skips={"in_row": state.in_row, "total": state.total})
        checkpoint["data"] = self.data.fingerprints()
        checkpoint["weighted_term"] = True  # before this mark, heads and critic got an unweighted gradient

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # "last" may have become another file before the last of several processes has looked for it.
        if self.trainer.strategy.broadcast(checkpoint["global_step"]) != checkpoint["global_step"]:
            raise StoredFileError("The processes found different checkpoints: name the file in --ckpt_path.")
        literal = self.information is not None and self.information.balance == "literal"
        if literal and "weighted_term" not in checkpoint and self.trainer.state.fn == "fit":
            raise StoredFileError("This run was begun before a literal weight was part of the term's loss: start anew.")
        skips = checkpoint.get("skips", {})
        self.state = RunState(checkpoint["compiled"], **skips, loaded_step=checkpoint["global_step"])
        keep_settings(checkpoint["optimizer_states"], self.configure_optimizers())

    @property
    def outer_steps(self) -> int:
        """Steps that the images have made, also where a checkpoint is evaluated, which Lightning counts from zero."""
        return max(self.global_step, self.state.loaded_step or 0)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.outer.build(self.synthetic, self.information)

    # --- one step

    def training_step(self, batch: int, batch_idx: int) -> None:
        mean = self.mean_gradients(self.global_step)
        factor = mean.host_loss.new_zeros(())
        if self.information is not None:
            factor = self.information.factor(mean.host_images, mean.information_images)
        images, student_lr = mean.joined(factor)
        length = images.norm()
        if all_finite(mean.host_loss, length, student_lr, mean.host_labels, mean.information_parameters):
            self.state.in_row = 0
            if self.image_gradient_clip is not None:
                images = self.image_gradient_clip(images)
            set_gradients(self.synthetic, self.information, images, student_lr, mean)
            self.whole = False
            step_all(self.optimizers())
            self.synthetic.settle()
            self.whole = True
            self.log_dict(log_values(mean, self.synthetic, self.information, factor), batch_size=1)
        else:
            self.state.skip(self.global_step, mean.host_loss, length, self.synthetic.student_lr.detach())
            self.zero_grad(set_to_none=True)  # optimisers pass over parameters without a gradient, and count the step
            step_all(self.optimizers())
        self.log(SKIPPED_STEPS, float(self.state.total), batch_size=1)

    def mean_gradients(self, step: int) -> Gradients:
        """Mean over the segments of a step."""
        size = at_once(self.device)
        groups = [self._share[start : start + size] for start in range(0, len(self._share), size)]
        sums = [self._segment_gradients(step, group) for group in groups]
        rows = Gradients(*(torch.stack(parts) for parts in zip(*sums, strict=True)))
        if len(self._share) < self.segments_per_step:
            rows = gathered(rows, lambda own: in_order(self.trainer, own))
        return Gradients(*(part.sum(0) / self.segments_per_step for part in rows))

    def _segment_gradients(self, step: int, indices: Sequence[int]) -> Gradients:
        """The sum over some segments of a step, computed together."""
        streams = [self.stream.at("segment", step, index) for index in indices]
        inner = [stream.at("inner loop") for stream in streams]
        scene = Scene(self.stream.at("step", step), inner, self.real, self._load_segments(step, indices))
        decoded = self.synthetic.decoded()
        match = self.objective(self.derivatives, decoded, scene)
        term, count = self.information, self.segments_per_step
        real = [] if term is None else [information_batch(term, self.real, count, s.at("real batch")) for s in streams]
        return segment_gradients(match, self.synthetic, decoded, self.derivatives, term, real)

    def _load_segments(self, step: int, indices: Sequence[int]) -> Segment | None:
        if self.segments is None:
            return None
        for row, index in enumerate(indices):
            segment = self.segments.read(step, index)
            self.segment_start[row].copy_(segment.start)
            self.segment_target[row].copy_(segment.target)
        return Segment(self.segment_start[: len(indices)], self.segment_target[: len(indices)])

    # --- evaluation

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: the Evaluation callback trains students and shows them the batches."""

    test_step = validation_step

"""How the module joins host and information term into one step."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DivergenceError
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import InMemory
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.optimizers import Adam, Momentum
from mim4dd_pl.information.critics import ClassMeanCritic, Critic, InfoNCECritic, SigmoidCritic
from mim4dd_pl.information.losses import balance
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.modules.gradients import information_batch, log_values
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.objectives.base import Objective
from mim4dd_pl.objectives.distribution_matching import DistributionMatching
from mim4dd_pl.objectives.gradient_matching import GradientMatching
from mim4dd_pl.objectives.information_alone import InformationAlone
from mim4dd_pl.objectives.performance_matching import PerformanceMatching
from mim4dd_pl.objectives.synthetic import SoftLabels
from mim4dd_pl.objectives.trajectory_matching import TrajectoryMatching
from mim4dd_pl.population.experts import Experts
from mim4dd_pl.population.training import Training
from mim4dd_pl.stored.segments import SegmentReader, draw_segment


def fit(
    data: ImageDataModule, experts: Experts, steps: int = 1, ckpt_path: Path | None = None, **settings: Any
) -> DistillationModule:
    settings = {"lr_images": 1.0, "lr_student_lr": 1e-3, "student_lr": 0.1, **settings}
    network = partial(ConvNet, depth=1, width=4)
    objective = settings.pop("objective", None) or TrajectoryMatching(2, 1, 2)
    module = DistillationModule(network, (1, 8, 8), 10, objective, experts, **settings)
    trainer = L.Trainer(
        max_epochs=-1,
        max_steps=steps,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    if module.objective.epochs is not None:
        draw = partial(draw_segment, module.store, experts.num_experts, module.objective.epochs, module.stream)
        module.segments = SegmentReader(draw, range(module.segments_per_step))
    return module


def first_gradients(module: DistillationModule) -> Any:
    """What the first segment of the first step contributed, computed again from the initial pixels."""
    return module._segment_gradients(0, [0])


def initial(data: ImageDataModule, experts: Experts, **settings: Any) -> DistillationModule:
    """A module at its first step: fitted with learning rates of zero."""
    return fit(data, experts, lr_images=0.0, lr_student_lr=0.0, **settings)


def test_images_start_from_real_images_of_their_class(data: ImageDataModule, experts: Experts) -> None:
    module = initial(data, experts, images_per_class=2)
    real = data.train.batch(torch.arange(len(data.train)))
    for image, label in zip(module.synthetic.images, module.synthetic.labels, strict=True):
        same = (real.images == image).flatten(1).all(1)
        assert real.labels[same].tolist() == [int(label)]


def test_a_step_is_sgd_on_the_mean_gradient_of_the_segments(data: ImageDataModule, experts: Experts) -> None:
    before = initial(data, experts, segments_per_step=2)
    after = fit(data, experts, segments_per_step=2)
    segments = [before._segment_gradients(0, [index]) for index in range(2)]
    assert not torch.equal(segments[0].host_images, segments[1].host_images)
    images = before.synthetic.images - (segments[0].host_images + segments[1].host_images) / 2
    student_lr = before.synthetic.student_lr - 1e-3 * (segments[0].host_lr + segments[1].host_lr) / 2
    torch.testing.assert_close(after.synthetic.images, images)
    torch.testing.assert_close(after.synthetic.student_lr, student_lr)


@pytest.mark.parametrize("kind", ["gradient", "literal"])
def test_the_term_joins_by_its_share_or_by_its_weight(
    data: ImageDataModule, experts: Experts, kind: Literal["gradient", "literal"]
) -> None:
    information = partial(InformationTerm, weight=0.3, balance=kind, critic=SigmoidCritic)
    before, after = initial(data, experts, information=information), fit(data, experts, information=information)
    # Zero learning rates froze the pixels, not the heads: take those that the first step saw.
    with before.stream.at("heads").as_global():
        before.information = information(before.network.layer_shapes(), 10)
    first = first_gradients(before)
    factor = balance(first.host_images, first.information_images, 0.3) if kind == "gradient" else torch.tensor(1.0)
    moved = before.synthetic.images - after.synthetic.images
    torch.testing.assert_close(moved, first.host_images + factor * first.information_images)
    if kind == "gradient":
        torch.testing.assert_close((moved - first.host_images).norm(), 0.3 * first.host_images.norm())


def test_long_pixel_gradients_are_clipped(data: ImageDataModule, experts: Experts) -> None:
    before, after = initial(data, experts), fit(data, experts, image_gradient_clip=1e-3)
    moved = (before.synthetic.images - after.synthetic.images).detach().norm()
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)


def test_heads_learn_and_steps_are_counted_once(data: ImageDataModule, experts: Experts) -> None:
    module = fit(data, experts, steps=3, information=InformationTerm)
    fresh = fit(data, experts, steps=1, information=InformationTerm)
    assert module.global_step == 3
    name = "information.heads.0.project.weight"
    assert not torch.equal(module.state_dict()[name], fresh.state_dict()[name])


def test_the_term_through_the_student_reaches_pixels_that_the_plain_term_does_not(
    data: ImageDataModule, experts: Experts
) -> None:
    """With the student's features, the gradient through its weights changes images and learning rate."""

    def term(through_student: bool) -> tuple[Tensor, Tensor]:
        information = partial(InformationTerm, networks="student", through_student=through_student)
        gradients = first_gradients(initial(data, experts, information=information))
        return gradients.information_images, gradients.information_lr

    plain, through = term(False), term(True)
    assert plain[1] == 0
    assert through[1] != 0
    assert not torch.allclose(plain[0], through[0])


def test_bounds_are_logged_by_the_names_of_their_layers_and_not_without_a_bound(
    data: ImageDataModule, experts: Experts
) -> None:
    def logged(critic: type[Critic]) -> set[str]:
        module = fit(data, experts, information=partial(InformationTerm, critic=critic, layers=["layer1"]))
        values = log_values(first_gradients(module), module.synthetic, module.information, torch.tensor(1.0))
        return {name for name in values if "bound" in name}

    assert logged(InfoNCECritic) == {"train/bound_nats_ceiling", "train/bound_nats_layer1"}
    assert not logged(ClassMeanCritic)


def test_frozen_heads_stay_as_they_are_initialised(data: ImageDataModule, experts: Experts) -> None:
    modules = [fit(data, experts, steps=n, information=partial(InformationTerm, lr=0.0)) for n in (1, 3)]
    one, three = (module.state_dict()["information.heads.0.project.weight"] for module in modules)
    assert torch.equal(one, three)
    assert not torch.equal(modules[0].synthetic.images, modules[1].synthetic.images)


def test_trajectory_buffers_hold_the_segment_and_stay_out_of_checkpoints(
    data: ImageDataModule, experts: Experts
) -> None:
    module = initial(data, experts)
    segments = [module.store.segment(expert, epoch, 1) for expert in range(2) for epoch in range(2)]
    assert any(torch.equal(module.segment_start[0], segment.start) for segment in segments)
    assert set(module.state_dict()) == {"synthetic.images", "synthetic.student_lr", "synthetic.labels"}


def test_a_run_that_leaves_the_finite_numbers_ends_with_advice(data: ImageDataModule, experts: Experts) -> None:
    with pytest.raises(DivergenceError, match=r"at step \d+, .*lower model\.lr_images"):
        fit(data, experts, steps=20, lr_images=1e30)


def test_noise_is_drawn_and_not_taken_from_real_images(data: ImageDataModule, experts: Experts) -> None:
    module = initial(data, experts, init="noise")
    generator = module.stream.at("initial images").generator()
    assert torch.equal(module.synthetic.images, torch.randn(10, 1, 8, 8, generator=generator))


def test_the_student_lr_stays_at_its_floor_when_a_step_would_take_it_below(
    data: ImageDataModule, experts: Experts
) -> None:
    module = fit(data, experts, lr_student_lr=1e6, min_student_lr=0.05, steps=2)
    assert float(module.synthetic.student_lr.detach()) >= 0.05
    assert float(initial(data, experts).synthetic.student_lr.detach()) == pytest.approx(0.1)


def test_momentum_carries_a_step_over_to_the_next(data: ImageDataModule, experts: Experts) -> None:
    """Second step: velocity 0.5 g1 + g2, so the pixels move by g1 + (0.5 g1 + g2) in all."""
    before, once, twice = initial(data, experts), fit(data, experts), fit(data, experts, steps=2)
    g1 = (before.synthetic.images - once.synthetic.images).detach()
    g2 = once._segment_gradients(1, [0]).host_images
    torch.testing.assert_close(before.synthetic.images - twice.synthetic.images, 1.5 * g1 + g2)


def test_the_student_lr_learns_from_the_term_too(data: ImageDataModule, experts: Experts) -> None:
    information = partial(InformationTerm, networks="student", through_student=True, balance="literal", weight=100.0)
    before = initial(data, experts, information=information)
    after = fit(data, experts, information=information, lr_student_lr=1e-5)
    with before.stream.at("heads").as_global():
        before.information = information(before.network.layer_shapes(), 10)
    first = first_gradients(before)
    moved = (before.synthetic.student_lr - after.synthetic.student_lr).detach()
    assert abs(float(first.information_lr)) > 0.1 * abs(float(first.host_lr))
    torch.testing.assert_close(moved, 1e-5 * (first.host_lr + first.information_lr), rtol=1e-3, atol=1e-7)


def test_segments_start_at_every_allowed_epoch_of_every_expert(data: ImageDataModule, experts: Experts) -> None:
    module = initial(data, experts)
    seen = set()
    for step in range(60):
        module._load_segments(step, [0])
        for expert in range(2):
            for epoch in range(2):
                segment = module.store.segment(expert, epoch, 1)
                if torch.equal(module.segment_start[0], segment.start):
                    assert torch.equal(module.segment_target[0], segment.target)
                    seen.add((expert, epoch))
    assert len(seen) == 4


def test_the_real_batch_has_a_stream_of_its_own(data: ImageDataModule, experts: Experts) -> None:
    """The term sees other real images at every step and the same ones at the same step."""
    module = initial(data, experts, information=InformationTerm)
    losses = [float(module._segment_gradients(step, [0]).information_loss) for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    names = [Stream(0).at("segment", 0, 0, name).key for name in ("expert", "inner loop", "real batch")]
    assert len(set(names)) == 3


def test_a_diverged_expert_is_not_kept(data: ImageDataModule, tmp_path: Path) -> None:
    experts = Experts(str(tmp_path / "experts"), Training(epochs=2, batch_size=50, lr=1e20), num_experts=1)
    with pytest.raises(DivergenceError, match=r"Expert 1 diverged: lower model\.experts\.training\.lr"):
        fit(data, experts)
    assert not (tmp_path / "experts").exists()


def test_real_images_of_a_step_are_dealt_to_its_segments(
    data: ImageDataModule, experts: Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = InformationTerm.forward

    def spy(self: InformationTerm, synthetic: Any, real: Any, *labels: Tensor) -> Any:
        seen.append(len(labels[1]))
        return forward(self, synthetic, real, *labels)

    monkeypatch.setattr(InformationTerm, "forward", spy)
    fit(data, experts, segments_per_step=3, information=partial(InformationTerm, real_batch_size=32))
    assert seen == [10, 10, 10]
    with pytest.raises(ValueError, match=r"real_batch_size must be at least model\.segments_per_step, got 2 for 3"):
        fit(data, experts, segments_per_step=3, information=partial(InformationTerm, real_batch_size=2))


@pytest.mark.parametrize("information", [None, InformationTerm], ids=["host", "host and term"])
def test_segments_at_once_are_segments_one_by_one(
    data: ImageDataModule, experts: Experts, information: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three segments in double precision: in one batch, as on an accelerator, and one after another."""
    module = initial(data, experts, segments_per_step=3, information=information).double()
    real = module.real.batch(torch.arange(len(module.real)))
    module.real = InMemory(real.images.double(), real.labels)  # type: ignore[assignment]
    single = module.mean_gradients(0)
    monkeypatch.setattr("mim4dd_pl.modules.distillation.at_once", lambda device: 3)
    for ours, oracle in zip(module.mean_gradients(0), single, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-12)


def test_a_step_may_be_of_momentum_or_adam(data: ImageDataModule, experts: Experts) -> None:
    """The same segment, another inner optimiser, another student."""
    losses = set()
    for optimizer in (None, Momentum(0.5), Adam()):
        module = initial(data, experts)
        module.objective = TrajectoryMatching(3, 1, 2, optimizer=optimizer)
        losses.add(float(module.mean_gradients(0).host_loss))
    assert len(losses) == 3


def test_a_compiled_run_follows_the_plain_one(data: ImageDataModule, experts: Experts) -> None:
    """Two steps with everything compiled: the same images up to rounding."""
    plain, compiled = (fit(data, experts, steps=2, compile=kind) for kind in (False, True))
    assert type(compiled.derivatives) is CompiledDerivatives
    assert type(plain.derivatives) is Derivatives
    assert not torch.equal(plain.synthetic.images, compiled.synthetic.images)
    torch.testing.assert_close(plain.synthetic.images, compiled.synthetic.images, rtol=1e-3, atol=1e-4)


HOSTS = [
    PerformanceMatching(3, window=2, real_per_class=2),
    GradientMatching(real_per_class=2, student_steps=1),
    DistributionMatching(real_per_class=2),
]


@pytest.mark.parametrize("objective", HOSTS, ids=lambda host: type(host).__name__)
def test_hosts_without_experts_train_none_and_carry_the_term(
    data: ImageDataModule, tmp_path: Path, objective: Objective
) -> None:
    """The term's pixel gradient is its share of the host's; no trajectory is written."""
    experts = Experts(str(tmp_path / "experts"), Training(epochs=2), num_experts=2)
    module = initial(data, experts, objective=objective, information=InformationTerm)
    mean = module.mean_gradients(0)
    assert mean.host_images.norm() > 0
    assert mean.information_images.norm() > 0
    assert module.information is not None
    factor = module.information.factor(mean.host_images, mean.information_images)
    torch.testing.assert_close(factor * mean.information_images.norm(), 0.3 * mean.host_images.norm())
    assert not (tmp_path / "experts").exists()


def test_the_term_alone_moves_the_images_by_its_weight(data: ImageDataModule, experts: Experts) -> None:
    term = partial(InformationTerm, weight=0.5)
    alone: dict[str, Any] = {"objective": InformationAlone(2), "information": term}
    before, after = initial(data, experts, **alone), fit(data, experts, **alone)
    with before.stream.at("heads").as_global():  # zero learning rates froze the pixels, not the heads
        before.information = term(before.network.layer_shapes(), 10)
    first = first_gradients(before)
    assert not first.host_images.any()
    torch.testing.assert_close(before.synthetic.images - after.synthetic.images, 0.5 * first.information_images)


def test_images_may_move_by_adam(data: ImageDataModule, experts: Experts) -> None:
    """Its first step is the learning rate times the sign of the gradient."""
    before, after = initial(data, experts), fit(data, experts, optimizer="adam", lr_images=0.01)
    moved = (before.synthetic.images - after.synthetic.images).detach()
    gradient = first_gradients(before).host_images
    torch.testing.assert_close(moved, 0.01 * gradient / (gradient.abs() + 1e-8), rtol=1e-3, atol=1e-6)


def test_balanced_real_images_are_as_many_of_each_class(data: ImageDataModule, stream: Stream) -> None:
    term = InformationTerm([(4, 4, 4)], 10, real_batch_size=60, real_sampling="balanced")
    batch = information_batch(term, data.train, 2, stream)
    assert torch.bincount(batch.labels).tolist() == [3] * 10


def test_a_term_that_the_host_cannot_serve_is_refused(experts: Experts) -> None:
    for settings, message in (
        ({"networks": "own"}, "networks is own, and DistributionMatching reads no experts"),
        ({"real_batch_size": 1}, "must be at least model.segments_per_step, got 1 for 2 segments"),
    ):
        with pytest.raises(ValueError, match=message):
            DistillationModule(
                partial(ConvNet, depth=1, width=4),
                (1, 8, 8),
                10,
                DistributionMatching(),
                experts,
                information=partial(InformationTerm, **settings),
                segments_per_step=2,
            )


def test_expert_epochs_that_no_segment_reads_are_named(
    data: ImageDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "mim4dd_pl"):
        fit(data, Experts(str(tmp_path), Training(epochs=5, batch_size=50, lr=0.05), num_experts=1))
    assert "Experts get 5 epochs, segments read 2 of them." in caplog.messages


def test_soft_labels_start_as_the_first_expert_sees_the_images_and_learn(
    data: ImageDataModule, experts: Experts
) -> None:
    """The logits move by momentum-free SGD on the host's gradient; the term has none on them."""
    module = initial(data, experts, soft_labels=SoftLabels(lr=0.0), images_per_class=2)
    assert module.synthetic.label_logits is not None
    start = module.synthetic.label_logits.detach().clone()
    assert torch.equal(start.argmax(1), module.synthetic.labels)
    expert = module.store.segment(0, 0, 2).target
    seen = module.network(expert, module.synthetic.images).detach()
    right = seen.argmax(1) == module.synthetic.labels
    assert right.any()
    torch.testing.assert_close(start[right], seen[right])
    gradient = first_gradients(module).host_labels
    stepped = fit(data, experts, soft_labels=SoftLabels(lr=3.0), images_per_class=2, momentum=0.0)
    assert stepped.synthetic.label_logits is not None
    torch.testing.assert_close(stepped.synthetic.label_logits.detach(), start - 3.0 * gradient)
    assert gradient.norm() > 0


def test_soft_labels_need_real_images_to_start_from(data: ImageDataModule, experts: Experts) -> None:
    with pytest.raises(ValueError, match=r"set model\.init to real"):
        fit(data, experts, soft_labels=SoftLabels(1.0), init="noise")

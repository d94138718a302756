"""Standardising and whitening: their formulas, their inverses, and kornia's own transform."""

from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.enhance import ZCAWhitening
from torch import Tensor

from mim4dd_pl.basics.errors import DataError
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data import normalization
from mim4dd_pl.data.normalization import Normalization, statistics, whitened
from mim4dd_pl.data.npz import Npz
from mim4dd_pl.data.sources import Digits
from mim4dd_pl.modules.data import ImageDataModule
from tests.conftest import ROOT
from tests.fakes import noise


@pytest.fixture
def images(stream: Stream) -> Tensor:
    """400 correlated images of 3x4x4."""
    generator = stream.generator()
    base = torch.randint(0, 128, (400, 1, 4, 4), generator=generator)
    return (base + torch.randint(0, 128, (400, 3, 4, 4), generator=generator)).to(torch.uint8)


@pytest.fixture
def inputs(images: Tensor) -> Tensor:
    """The same, standardised."""
    return statistics(images)(images.float() / 255)


@pytest.fixture
def zca(images: Tensor) -> Normalization:
    return whitened(statistics(images), images, torch.arange(len(images)))


def test_statistics_equal_the_moments_of_the_pixels(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalization, "_CHUNK", 1000)  # 20 images at a time
    rows = torch.arange(0, 400, 3)
    found, pixels = statistics(images, rows), images[rows].double() / 255
    torch.testing.assert_close(found.mean.double(), pixels.mean((0, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.std.double(), pixels.std((0, 2, 3), correction=0), atol=1e-6, rtol=0)


def test_a_constant_channel_normalises_to_zero() -> None:
    found = statistics(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8))
    assert float(found(torch.full((1, 1, 1), 7 / 255))) == pytest.approx(0, abs=1e-4)


def test_whitening_equals_the_eigenvectors_of_the_covariance(
    images: Tensor, inputs: Tensor, zca: Normalization
) -> None:
    x = inputs.double().flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    expected = (x - x.mean(0)) @ vectors @ torch.diag((values + 0.1) ** -0.5) @ vectors.T
    torch.testing.assert_close(zca(images.float() / 255).double().flatten(1), expected, atol=1e-4, rtol=0)


def test_whitened_training_images_are_uncorrelated_up_to_eps(
    images: Tensor, inputs: Tensor, zca: Normalization
) -> None:
    """Along each principal axis of variance v, v / (v + eps) is left."""
    covariance = torch.cov(zca(images.float() / 255).double().flatten(1).T)
    values, vectors = torch.linalg.eigh(torch.cov(inputs.double().flatten(1).T))
    expected = vectors @ torch.diag(values / (values + 0.1)) @ vectors.T
    torch.testing.assert_close(covariance, expected, atol=1e-4, rtol=0)
    assert float((covariance - torch.eye(48)).abs().max()) < 0.5
    assert float((covariance - torch.eye(48)).abs().mean()) < 0.02


def test_whitening_equals_kornias_own_transform(images: Tensor, inputs: Tensor, zca: Normalization) -> None:
    kornias = ZCAWhitening(eps=0.1, compute_inv=True).fit(inputs)
    torch.testing.assert_close(zca(images.float() / 255), kornias(inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["standardised", "whitened"])
def test_the_inverse_gives_the_pixels_back(kind: str, images: Tensor, zca: Normalization) -> None:
    normalize = zca if kind == "whitened" else statistics(images)
    pixels = images.float() / 255
    torch.testing.assert_close(normalize.inverse(normalize(pixels)), pixels, atol=1e-5, rtol=0)


def test_one_image_and_a_batch_are_whitened_alike(images: Tensor, zca: Normalization) -> None:
    pixels = images[:3].float() / 255
    torch.testing.assert_close(zca(pixels)[1], zca(pixels[1]))


def test_training_validation_and_test_images_are_whitened_by_the_training_images() -> None:
    data = ImageDataModule(Digits(), zca=True)
    data.setup()
    rows = data.train.rows
    expected = whitened(statistics(data.train.images, rows), data.train.images, rows)
    for split in (data.train, data.validation, data.test):
        pixels = split.images[split.rows[:5]].float() / 255
        torch.testing.assert_close(split.batch(torch.arange(5)).images, expected(pixels))


@pytest.fixture
def npz(tmp_path: Path) -> Npz:
    labels = np.arange(60) % 3
    np.savez(tmp_path / "set.npz", x_train=noise(60, 6, 6), y_train=labels, x_test=noise(30, 6, 6), y_test=labels[:30])
    return Npz(str(tmp_path / "set.npz"))


def test_statistics_and_whitening_are_measured_once(npz: Npz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again() -> Normalization:
        data = ImageDataModule(npz, zca=True, cache=str(tmp_path / "cache"))
        data.setup()
        return data.train.normalization

    def fail(*_: object) -> Normalization:
        raise AssertionError("measured again")

    first = again()
    for name in ("statistics", "whitened"):
        monkeypatch.setattr(f"mim4dd_pl.data.cache.{name}", fail)
    second = again()
    assert first.whitening is not None
    assert second.whitening is not None
    for name in ("mean", "matrix"):
        assert torch.equal(getattr(first.whitening, name), getattr(second.whitening, name))
    assert torch.equal(first.std, second.std)


def test_a_damaged_whitening_is_fitted_anew(npz: Npz, tmp_path: Path) -> None:
    def fit() -> Tensor:
        data = ImageDataModule(npz, zca=True, cache=str(tmp_path / "cache"))
        data.setup()
        assert data.train.normalization.whitening is not None
        return data.train.normalization.whitening.matrix

    first = fit()
    (stored,) = tmp_path.glob("cache/*/split-*.safetensors")
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-4] + b"\x00\x00\xff\x7f")
    assert torch.equal(fit(), first)
    assert stored.read_bytes() == whole


def test_whitening_and_plain_statistics_lie_side_by_side(npz: Npz, tmp_path: Path) -> None:
    for zca in (False, True, False):
        data = ImageDataModule(npz, zca=zca, cache=str(tmp_path / "cache"))
        data.setup()
        assert (data.train.normalization.whitening is not None) == zca


def test_images_that_are_too_large_to_whiten_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=noise(9, 65, 65), y_train=[0, 1, 2] * 3, x_test=noise(1, 65, 65), y_test=[0])
    source = Npz(str(tmp_path / "x.npz"))
    with pytest.raises(
        DataError, match=r"data\.zca takes images of up to 4,096 numbers, those of x have 4,225 \(1x65x65"
    ):
        ImageDataModule(source, zca=True)


@pytest.mark.skipif(not (ROOT.parent / "shared/data/mnist.npz").exists(), reason="needs ../shared/data/mnist.npz")
def test_real_mnist_has_the_published_statistics() -> None:
    with np.load(ROOT.parent / "shared/data/mnist.npz") as file:
        key = next(key for key in file if file[key].ndim == 3 and len(file[key]) == 60_000)
        found = statistics(torch.from_numpy(file[key])[:, None])
    assert float(found.mean) == pytest.approx(0.1307, abs=5e-5)
    assert float(found.std) == pytest.approx(0.3081, abs=5e-5)

"""Whatever a file holds, its reader gives what it should or says what is wrong: no traceback, no hang."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from mim4dd_pl.app.recipes import check_keys
from mim4dd_pl.basics.errors import StoredFileError, UserError
from mim4dd_pl.basics.files import sha256
from mim4dd_pl.basics.identity import Identity
from mim4dd_pl.basics.yamls import read_mapping
from mim4dd_pl.data.normalization import Normalization
from mim4dd_pl.stored.artefact import read_distilled, write_distilled
from mim4dd_pl.stored.distilled import Distilled
from mim4dd_pl.stored.trajectories import TrajectorySpec, TrajectoryStore
from tests.conftest import CONFIGS

SPEC = TrajectorySpec(
    "digits", "0a", Identity("ConvNet", {"depth": 1}, {}), 7, Identity("Training", {"epochs": 3}, {}), 3, 0
)


def read_or_refused(read: Callable[[], object], name: Path, refusal: type[UserError]) -> bool:
    """Whether it is read, or ``refusal`` names the file or its folder; whatever else is raised is a failure."""
    try:
        read()
    except refusal as error:
        return str(name) in str(error)
    return True


few = settings(max_examples=60, derandomize=True, deadline=5000, database=None)

texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["../x", "/x", "experts", "sha256", "manifest.json", "a/../b", "\0", "x" * 300]),
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)


def places(content: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all parts of nested keys and values."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [before, *(place for key, part in inner for place in places(part, (*before, key)))]


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at one place."""
    if not place:
        return value
    copy = content.copy()
    copy[place[0]] = changed(content[place[0]], place[1:], value)
    return copy


@st.composite
def mutations(draw: st.DrawFn, text: str, load: Callable[[str], Any], dump: Callable[[Any], str]) -> bytes:
    """A file like ``text``: with a part exchanged, with bytes exchanged or cut off, or anything at all."""
    kind = draw(st.sampled_from(["part", "bytes", "cut", "anything"]))
    whole = text.encode()
    if kind == "part":
        content = load(text)
        place = draw(st.sampled_from(places(content)))
        return dump(changed(content, place, draw(values))).encode("utf-8", "surrogatepass")
    if kind == "bytes":
        start = draw(st.integers(0, len(whole) - 1))
        return whole[:start] + draw(st.binary(min_size=1, max_size=8)) + whole[start + draw(st.integers(0, 8)) :]
    return whole[: draw(st.integers(0, len(whole)))] if kind == "cut" else draw(st.binary(max_size=200))


def as_json(text: str) -> st.SearchStrategy[bytes]:
    return mutations(text, json.loads, json.dumps)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    store = TrajectoryStore(tmp_path_factory.mktemp("store"), SPEC)
    store.add(2, torch.arange(28.0).view(4, 7))
    return store


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact") / "best"
    plain = Normalization(torch.zeros(1), torch.ones(1))
    images, labels = torch.arange(32.0).view(2, 1, 4, 4), torch.tensor([0, 1])
    distilled = Distilled(images, labels, None, torch.tensor(0.1), plain, ("cat", "dog"), {"seed": "0"})
    write_distilled(folder, distilled)
    return folder


@few
@given(data=st.data())
def test_a_manifest_of_trajectories_is_read_or_refused(store: TrajectoryStore, data: st.DataObject) -> None:
    path = store.root / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(data.draw(as_json(whole.decode())))
    try:
        assert read_or_refused(lambda: TrajectoryStore(store.root, SPEC), store.root, StoredFileError)
    finally:
        path.write_bytes(whole)


@few
@given(data=st.data())
def test_a_manifest_of_an_artefact_is_read_or_refused(artefact: Path, data: st.DataObject) -> None:
    path = artefact / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(data.draw(as_json(whole.decode())))
    try:
        assert read_or_refused(lambda: read_distilled(artefact), artefact, StoredFileError)
    finally:
        path.write_bytes(whole)


@few
@given(
    about=as_json('{"classes": ["cat", "dog"], "facts": {"seed": "0"}}'), shape=st.lists(st.integers(0, 5), max_size=5)
)
def test_tensors_of_an_artefact_are_read_or_refused(artefact: Path, about: bytes, shape: list[int]) -> None:
    """The manifest fits: whoever made them made it as well."""
    path, manifest = artefact / "distilled.safetensors", artefact / "manifest.json"
    before = {each: each.read_bytes() for each in (path, manifest)}
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        name = sorted(tensors)[sum(shape) % len(tensors)]
        save_file({**tensors, name: torch.zeros(shape)}, path, {"mim4dd_pl": about.decode("utf-8", "replace")})
        manifest.write_text(json.dumps({"schema": 1, "sha256": {path.name: sha256(path)}}))
        assert read_or_refused(lambda: read_distilled(artefact), path, StoredFileError)
    finally:
        for each, content in before.items():
            each.write_bytes(content)


@few
@given(content=mutations((CONFIGS / "distill/digits.yaml").read_text(), yaml.safe_load, yaml.safe_dump))
def test_a_recipe_is_read_or_refused(content: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        path = Path(file.name)
        path.write_bytes(content)
        assert read_or_refused(lambda: check_keys([f"--config={path}"]), path, UserError)


WORDS = (
    "a:_&a *a <<:_*a [ ] { } -_ ?_ :_ __ !!int_ !!timestamp_ !!binary_ !!set_ !!omap_ !!merge_ x 1:59 ~ --- ... ' | > #"
)
PIECES = [*(word.replace("_", " ") for word in WORDS.split()), "\n", "\t", '"', "\ufeff", "!!python/name:os.system "]


@settings(few, max_examples=200)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12))
def test_yaml_of_any_pieces_is_read_or_refused(pieces: list[str]) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        path = Path(file.name)
        path.write_text("".join(pieces), encoding="utf-8")
        assert read_or_refused(lambda: read_mapping(path), path, UserError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 3000, "is nested too deeply"),
        ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 50)), "aliases multiply"),
        ("a: 1" + ":59" * 3000, "a number is too large"),
        ("a: '" + "x" * 2**16 + "'", "65,541 bytes, expected at most 65,536"),
    ],
    ids=["deep", "aliases", "number", "long"],
)
def test_yaml_that_grows_when_it_is_read_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_mapping(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "line",
    ["a{i}: &a{i} {{<<: [*a{j}, *a{j}]}}\n", "a{i}: &a{i} {{k: {i}, <<: *a{j}}}\n"],
    ids=["doubled", "overridden"],
)
def test_merged_keys_do_not_multiply(line: str, tmp_path: Path) -> None:
    lines = [line.format(i=i, j=i - 1) for i in range(1, 1500)]
    (tmp_path / "x.yaml").write_text("a0: &a0 {k: 0}\n" + "".join(lines))
    assert read_mapping(tmp_path / "x.yaml")["a1499"] == {"k": 0 if "[" in line else 1499}

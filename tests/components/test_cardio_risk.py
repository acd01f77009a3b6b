import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vht_federate.components.digest import ComponentFiles
from vht_federate.components.loader import build_model, load_entry
from vht_federate.components.loss import loss_of
from vht_federate.components.registry import find_component
from vht_federate.errors import ComponentError, InputError

FILES = ComponentFiles.read(find_component("cardio-risk").folder)
CONTRACT = FILES.component()
PROFILES = sorted(CONTRACT.profiles)


def column(profile: str, name: str) -> int:
    return CONTRACT.profile(profile).inputs.index(name)


@pytest.mark.parametrize("profile", PROFILES)
def test_it_starts_at_zero_and_only_weights_travel(profile: str) -> None:
    model = build_model(FILES, profile)
    values = torch.randn(5, len(CONTRACT.inputs(profile))) * 100
    assert (model(values) == 0).all()
    assert model(values).shape == (5,)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PROFILES), st.data())
def test_features_are_finite_and_bounded_whatever_the_values(profile: str, data: st.DataObject) -> None:
    inputs = len(CONTRACT.inputs(profile))
    numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)
    values = torch.tensor([data.draw(st.lists(numbers, min_size=inputs, max_size=inputs))])
    features = build_model(FILES, profile).encoding(values)
    assert torch.isfinite(features).all()
    assert float(features.norm()) <= 2.0 + 1e-6


def test_bounds_are_clamped_and_missing_is_its_own_column() -> None:
    encoding = build_model(FILES, "angiography").encoding
    values = torch.full((4, 13), math.nan)
    values[1, column("angiography", "age")] = 20
    values[2, column("angiography", "age")] = 1e9
    values[3, column("angiography", "thallium")] = 2
    shown = [
        {name: round(float(x / encoding.scale), 6) for name, x in zip(encoding.names, row, strict=True) if x != 0}
        for row in encoding(values)
    ]
    assert shown[0] == {f"{name} missing": 1 for name in CONTRACT.profile("angiography").inputs}
    assert (shown[1]["age"], shown[2]["age"]) == (-2.0, 2.0)
    assert "age missing" not in shown[1]
    assert shown[3]["thallium=reversible-defect"] == 1
    assert not any(key.startswith("thallium") for key in shown[1] if key != "thallium missing")


def test_one_record_does_not_change_anothers_logit() -> None:
    model = build_model(FILES, "cardiometabolic")
    torch.nn.init.normal_(model.linear.weight)
    values = torch.tensor(np.random.default_rng(0).uniform(0, 100, (8, 11)), dtype=torch.float32)
    together = model(values)
    alone = torch.cat([model(values[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone)


def test_the_loss_of_a_probability_is_cross_entropy_of_logits() -> None:
    loss = loss_of(CONTRACT)
    assert float(loss(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0]))) == pytest.approx(math.log(2))


def test_loading_leaves_the_folder_and_the_path_as_they_were(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(FILES.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__")))
    before = list(sys.path), sorted(copy.rglob("*"))
    build_model(ComponentFiles.read(copy), "angiography")
    assert (list(sys.path), sorted(copy.rglob("*"))) == before


def folder_with(tmp_path: Path, modules: dict[str, str] | None = None, **more: str) -> ComponentFiles:
    (tmp_path / "component.toml").write_bytes(FILES.files["component.toml"])
    for name, source in ((modules or {}) | more).items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return ComponentFiles.read(tmp_path)


def test_what_was_digested_is_what_runs_even_if_the_folder_changes_meanwhile(tmp_path: Path) -> None:
    files = folder_with(tmp_path, model="def build(component, profile):\n    return 'approved'\n")
    (tmp_path / "model.py").write_text("def build(component, profile):\n    return 'swapped'\n")
    assert load_entry(files)(None, "x") == "approved"


def test_files_of_a_component_import_each_other_relatively(tmp_path: Path) -> None:
    modules = {
        "model": "from .inner import twice\nfrom .inner.deep import SEVEN\ndef build(c, p):\n    return twice(SEVEN)\n",
        "inner/__init__": "def twice(x):\n    return 2 * x\n",
        "inner/deep": "SEVEN = 7\n",
    }
    files = folder_with(tmp_path, modules)
    assert sorted(files.files) == [
        "component.toml", "generalised_linear.py", "inner/__init__.py", "inner/deep.py", "model.py",
    ]  # fmt: skip
    assert load_entry(files)(None, "x") == 14


def test_two_versions_of_one_component_live_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = load_entry(folder_with(tmp_path / "a", model="def build(c, p):\n    return 1\n"))
    second = load_entry(folder_with(tmp_path / "b", model="def build(c, p):\n    return 2\n"))
    assert (first(None, ""), second(None, "")) == (1, 2)


@pytest.mark.parametrize(
    "source",
    ["def build(:", "raise RuntimeError('42 secret')", "", "import no_such_module_here", "from . import absent"],
)
def test_code_that_does_not_load_is_a_component_error_without_its_own_words(tmp_path: Path, source: str) -> None:
    with pytest.raises(ComponentError) as caught:
        load_entry(folder_with(tmp_path, model=source))
    assert caught.value.code == "VHT-COMPONENT-ENTRY"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("source", ["def build(c, p):\n    return 3\n", "def build(c, p):\n    raise ValueError\n"])
def test_an_entry_that_builds_no_module_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(ComponentError):
        build_model(folder_with(tmp_path, model=source), "angiography")


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(InputError):
        build_model(FILES, "no-such")

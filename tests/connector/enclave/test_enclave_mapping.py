"""What the enclave reads stays on the disk: mapped, whole, and never more than the file says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.enclave_visits import PROFILE, SHIPPED, write_cohort
from safetensors.numpy import load_file, save, save_file

from connector.enclave.cohort import read_cohort
from connector.enclave.mapped_tensors import mapped_tensors
from connector.views.tensor_file import TensorFile
from vht_federate.components.contract import Profile
from vht_federate.errors import CohortError
from vht_federate.signing.canonical import sha256_hex

SEQUENCE = SHIPPED.component.model_copy(
    update={
        "profiles": {
            PROFILE: Profile.model_validate(
                SHIPPED.component.profile(PROFILE).model_dump()
                | {"layout": "sequence", "steps": 5, "window_days": 30, "inputs": ("age", "systolic_bp")}
            )
        }
    }
)
RECORDS = 7


def tensor_file(text: bytes, data: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def stepped() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (RECORDS, 5, 2), dtype=np.uint8)
    return {
        "values": (rng.random((RECORDS, 5, 2)) * mask).astype(np.float32),
        "times": (rng.random((RECORDS, 5, 2)) * mask).astype(np.float32),
        "mask": mask,
        "outcome": np.zeros(RECORDS, np.float32),
        "patient": np.arange(RECORDS, dtype=np.int64),
        "bucket": np.arange(RECORDS, dtype=np.uint8),
    }


def write_stepped(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    raw = save(tensors)
    (folder / "cohort.safetensors").write_bytes(raw)
    named = {"component": "cardio-risk", "profile": PROFILE, "inputs": ["age", "systolic_bp"]}
    (folder / "manifest.json").write_text(json.dumps(named | {"sha256": sha256_hex(raw)}))
    return folder


# --- the file ---------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "values"]),
        st.tuples(st.sampled_from([np.int64, np.float32, np.uint8]), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
    )
)
@settings(max_examples=40, deadline=None)
def test_what_is_filled_in_place_is_what_safetensors_and_the_map_read(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[Any, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.safetensors"
    shapes = {name: (kind, tuple(shape)) for name, (kind, shape) in kinds.items()}
    file = TensorFile(path, shapes)
    for place, array in enumerate(file.arrays.values()):
        array[...] = np.arange(array.size).reshape(array.shape) + place
    del array
    sealed = file.seal()
    digest, mapped = mapped_tensors(path)
    expected = load_file(path)
    assert sealed.sha256 == digest == sha256_hex(path.read_bytes())
    assert set(mapped) == set(expected) == set(kinds)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(mapped[name], tensor)
        assert (mapped[name].dtype, mapped[name].shape) == (tensor.dtype, shapes[name][1])
        assert sealed.tensors[name] == sha256_hex(tensor.tobytes())


def test_a_file_that_safetensors_wrote_is_mapped_too(tmp_path: Path) -> None:
    tensors = stepped()
    save_file(tensors, tmp_path / "t.safetensors")
    _, mapped = mapped_tensors(tmp_path / "t.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(mapped[name], tensor)


def test_what_is_done_to_the_map_does_not_reach_the_file(tmp_path: Path) -> None:
    save_file({"values": np.zeros((3, 2), np.float32)}, tmp_path / "t.safetensors")
    before = (tmp_path / "t.safetensors").read_bytes()
    _, mapped = mapped_tensors(tmp_path / "t.safetensors")
    mapped["values"][:] = 7.0
    assert (tmp_path / "t.safetensors").read_bytes() == before


ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"\x00" * 8,
        (1 << 62).to_bytes(8, "little") + b"{}",
        tensor_file(b"{", b""),
        tensor_file(b"[]", b""),
        tensor_file(b"[" * 100_000, b""),
        tensor_file(b"{}", b"tail"),
        *(
            tensor_file(json.dumps({"a": ENTRY | change}).encode(), b"\x00" * 16)
            for change in (
                {"dtype": "F8"},
                {"dtype": ["F32"]},
                {"shape": [2, 3]},
                {"shape": [-2, -2]},
                {"shape": [4.0]},
                {"shape": [True, 4]},
                {"shape": 4},
                {"shape": [1 << 40, 1 << 40]},
                {"data_offsets": [0, 12]},
                {"data_offsets": [4, 20]},
                {"data_offsets": [16, 0]},
                {"data_offsets": []},
                {"data_offsets": None},
            )
        ),
        tensor_file(json.dumps({"a": ENTRY, "b": ENTRY}).encode(), b"\x00" * 16),
        tensor_file(json.dumps({"a": ENTRY, "b": ENTRY | {"data_offsets": [20, 36]}}).encode(), b"\x00" * 36),
        tensor_file(json.dumps({"a": {"dtype": "F32"}}).encode(), b""),
        tensor_file(json.dumps({"a": 5}).encode(), b""),
    ],
)
def test_a_file_that_is_not_exactly_its_tensors_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "t").write_bytes(raw)
    with pytest.raises(ValueError, match=r"header|shape|tensor|empty|JSON|Expecting|codec|delimiter"):
        mapped_tensors(tmp_path / "t")


def test_no_room_is_said_before_the_first_value_and_leaves_no_file(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            TensorFile(tmp_path / "t.safetensors", {"values": (np.float32, (1 << 16, 4))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "t.safetensors").exists()


# --- the cohort -------------------------------------------------------------------------------------------------------


def test_a_cohort_with_steps_is_read_and_split_by_patient(tmp_path: Path) -> None:
    tensors = stepped()
    arrays = read_cohort(write_stepped(tmp_path / "c", tensors), SEQUENCE, PROFILE)._open()
    given_to_model = arrays.model_inputs()
    assert given_to_model.shape == (RECORDS, 3, 5, 2)
    for place, name in enumerate(("values", "mask", "times")):
        np.testing.assert_array_equal(given_to_model[:, place], tensors[name])
    test = arrays.of("test")
    np.testing.assert_array_equal(
        np.concatenate([arrays.of("train").model_inputs(), test.model_inputs()]).sum(axis=0), given_to_model.sum(axis=0)
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.pop("mask"),
        lambda t: t.pop("times"),
        lambda t: t.update(mask=t["mask"] + np.uint8(2)),
        lambda t: t.update(mask=t["mask"].astype(np.float32)),
        lambda t: t.update(mask=t["mask"][:, :-1].copy()),
        lambda t: t.update(times=t["times"][:, :, :1].copy()),
        lambda t: t.update({name: t[name][:, :-1].copy() for name in ("values", "mask", "times")}),
        lambda t: t.update(values=t["values"].reshape(RECORDS, 10)),
        lambda t: t.update(patient=t["patient"].reshape(1, RECORDS)),
        lambda t: t.update(bucket=t["bucket"].reshape(1, RECORDS)),
        lambda t: t.update(outcome=t["outcome"].reshape(1, RECORDS)),
    ],
)
def test_steps_that_do_not_fit_together_are_refused_without_a_value(tmp_path: Path, spoil: Any) -> None:
    tensors = stepped()
    spoil(tensors)
    with pytest.raises(CohortError) as caught:
        read_cohort(write_stepped(tmp_path / "c", tensors), SEQUENCE, PROFILE)
    assert caught.value.code == "VHT-COHORT-TENSORS"
    assert not any(letter.isdigit() for letter in caught.value.message)


def test_a_tabular_cohort_is_not_taken_for_one_with_steps(tmp_path: Path) -> None:
    write_cohort(tmp_path / "c")
    with pytest.raises(CohortError):
        read_cohort(tmp_path / "c", SEQUENCE, PROFILE)
    with pytest.raises(CohortError):
        read_cohort(write_stepped(tmp_path / "d", stepped()), SHIPPED.component, PROFILE)


# --- memory -----------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
import numpy as np
from connector.enclave.cohort import read_cohort
from vht_federate.components.contract import Component

def resident():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

component = Component.model_validate_json(Path(sys.argv[2]).read_text())
before = resident()
cohort = read_cohort(Path(sys.argv[1]), component, sys.argv[3])
after = resident()
total = cohort.map(lambda arrays: float(arrays.values[::4096].sum()))._open()
print(after - before, total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("steps", [0, 16], ids=["tabular", "sequence"])
def test_resident_memory_does_not_grow_by_the_files_size(tmp_path: Path, steps: int) -> None:
    inputs = SHIPPED.component.profile(PROFILE).inputs
    change = {"layout": "sequence", "steps": steps, "window_days": 30} if steps else {}
    profile = Profile.model_validate(SHIPPED.component.profile(PROFILE).model_dump() | change)
    component = SHIPPED.component.model_copy(update={"profiles": {PROFILE: profile}})
    records = 60_000 if steps else 1_200_000
    shape = (records, *profile.shape)
    kinds: dict[str, Any] = {"values": (np.float32, shape)}
    if steps:
        kinds |= {"times": (np.float32, shape), "mask": (np.uint8, shape)}
    kinds |= {"outcome": (np.float32, (records,)), "patient": (np.int64, (records,)), "bucket": (np.uint8, (1,))}
    file = TensorFile(tmp_path / "cohort.safetensors", kinds)
    file.arrays["values"][:] = 1.0
    manifest = {"component": component.name, "profile": PROFILE, "inputs": list(inputs), "sha256": file.seal().sha256}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "component.json").write_text(component.model_dump_json())
    completed = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path, tmp_path / "component.json", PROFILE],
        capture_output=True,
        text=True,
        check=True,
    )
    grown_kb, total = completed.stdout.split()
    size_kb = (tmp_path / "cohort.safetensors").stat().st_size // 1024
    assert float(total) > 0
    assert size_kb > 50_000
    assert int(grown_kb) < 0.6 * size_kb

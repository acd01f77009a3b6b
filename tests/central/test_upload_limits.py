"""An upload by anybody: it costs the platform little memory, whatever it claims, and nothing unsigned is parsed."""

import gzip
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from kit.publishable_release import Platform
from safetensors.numpy import save

from vht_federate.central.archive import Limits, unpack
from vht_federate.central.row_detection.files import look_at_heads, look_for_rows
from vht_federate.errors import PublicationError, VerificationError
from vht_federate.signing.keys import SigningKey
from vht_federate.signing.signed_manifest import seal, unseal

MIB = 1 << 20


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(PublicationError) as caught:
        action()
    return caught.value.code


@contextmanager
def at_most(mib: int) -> Iterator[None]:
    """Fails where Python allocates more at any one time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mib * MIB


# --- archives -----------------------------------------------------------------------------------------------------


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(format=tarfile.GNU_FORMAT)


def block(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 512)


def packed(*parts: bytes, zeros: int = 0) -> io.BytesIO:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        for part in parts:
            file.write(part)
        for _ in range(zeros // MIB):
            file.write(bytes(MIB))
        file.write(bytes(1024))
    buffer.seek(0)
    return buffer


def pax(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n"
    length = len(rest) + 2
    length += len(str(length)) - 2
    record = f"{length}{rest}".encode()
    assert len(record) == length
    return header(tarfile.XHDTYPE, len(record)) + block(record)


FILE = header(tarfile.REGTYPE, 1, "a.json") + block(b"1")
EXTENDED = [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]


@pytest.mark.parametrize("kind", [*EXTENDED, tarfile.GNUTYPE_SPARSE, tarfile.DIRTYPE, b"Z"])
def test_a_header_that_claims_much_costs_little(kind: bytes, tmp_path: Path) -> None:
    bomb = packed(header(kind, 64 * MIB), zeros=64 * MIB)
    with at_most(4):
        assert code_of(lambda: unpack(bomb, tmp_path / "b", Limits())) == "VHT-PUBLICATION-ARCHIVE"


def test_a_small_archive_of_very_many_bytes_is_refused_before_they_are_written(tmp_path: Path) -> None:
    limits = Limits(files=5, total_bytes=MIB)
    for parts, zeros in (((header(tarfile.REGTYPE, 32 * MIB, "a"),), 32 * MIB), ((FILE, bytes(1024)), 32 * MIB)):
        bomb, target = packed(*parts, zeros=zeros), tmp_path / str(len(parts))
        with at_most(4):
            assert code_of(lambda: unpack(bomb, target, limits)) == "VHT-PUBLICATION-ARCHIVE"  # noqa: B023
        assert sum(path.stat().st_size for path in target.rglob("*")) < 2 * MIB


@pytest.mark.parametrize("kind", [header(tarfile.DIRTYPE, 0, "d"), pax("mtime", "1.5")])
def test_headers_without_files_count_against_the_limit(kind: bytes, tmp_path: Path) -> None:
    bomb = packed(kind * 20_000, FILE)
    with at_most(4):
        limits = Limits(files=5, total_bytes=1_000)
        assert code_of(lambda: unpack(bomb, tmp_path / "b", limits)) == "VHT-PUBLICATION-ARCHIVE"


@pytest.mark.parametrize(
    "parts",
    [
        [pax("path", "../outside"), FILE],
        [pax("path", "/etc/passwd"), FILE],
        [pax("size", "9"), FILE],
        [pax("size", "-1"), FILE],
        [pax("linkpath", "a"), FILE],
        [pax("GNU.sparse.major", "1"), FILE],
        [header(tarfile.XHDTYPE, 512) + block(b"99 path=a\n"), FILE],
        [header(tarfile.XHDTYPE, 512) + block(b"no record"), FILE],
        [header(tarfile.XHDTYPE, 5000 * 512) + b"9" * 5000 * 512, FILE],
        [FILE, bytes(512), FILE],
        [header(tarfile.REGTYPE, 9_999, "a.json")],
    ],
)
def test_an_extended_header_changes_a_name_and_nothing_else(parts: list[bytes], tmp_path: Path) -> None:
    assert code_of(lambda: unpack(packed(*parts), tmp_path / "in" / "b", Limits())) == "VHT-PUBLICATION-ARCHIVE"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_of_usual_tools_unpack_whole(form: int, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    names = ["a.json", "nodes/hospital-1.json", f"release/{'c' * 60}/code/{'d' * 60}.py"]
    for number, name in enumerate(names):
        path = tmp_path / "from" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * (511 + number))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=form) as archive:
        archive.add(tmp_path / "from", arcname=".")
    buffer.seek(0)
    unpack(buffer, tmp_path / "to", Limits())
    assert [(tmp_path / "to" / name).read_bytes() for name in names] == [
        (tmp_path / "from" / name).read_bytes() for name in names
    ]


# --- nothing is parsed before the seal holds ------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["[" * 200_000, "[" + "[]," * 1_000_000 + "[]]"])
def test_unsigned_json_is_not_parsed(content: str, platform: Platform, bundle: Path) -> None:
    (bundle / "run.json").write_text(content[: 2 * MIB])
    with at_most(16):
        assert code_of(lambda: platform.send(bundle)) == "VHT-PUBLICATION-EVIDENCE"


def test_a_manifest_that_was_not_signed_is_not_parsed(tmp_path: Path) -> None:
    key = SigningKey.generate()
    (tmp_path / "a.json").write_text("{}")
    seal(tmp_path, {"kind": "evidence"}, key, typ="t", allowed=["a.json"])
    (tmp_path / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(VerificationError, match="not the one that was signed"):
        unseal(tmp_path, key.public, typ="t", allowed=["a.json"], required=[])


@pytest.mark.parametrize(
    "name", ["run.json", "study.jws", "nodes/hospital-1.json", "outputs/train-1/hospital-1.json", "weights.safetensors"]
)
def test_a_file_larger_than_its_kind_is_refused_unread(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(300 * MIB)
    with at_most(1):
        assert code_of(lambda: look_at_heads(tmp_path)) == "VHT-PUBLICATION-SIZE"


def test_signed_json_that_is_deep_or_of_very_many_values_is_a_typed_refusal(tmp_path: Path) -> None:
    for content in ("[" * 200_000, "[" + "[]," * 400_000 + "[]]"):
        (tmp_path / "run.json").write_text(content)
        with at_most(16):
            assert code_of(lambda: look_for_rows(tmp_path)) == "VHT-PUBLICATION-ROWS"


# --- rows in further dresses ----------------------------------------------------------------------------------------

COLUMN = list(range(1500))
PEOPLE = [{"age": 40 + row % 30, "chol": 200.5, "dx": 0} for row in range(30)]
RNG = np.random.default_rng(7)
NOISE = RNG.normal(size=(64, 64)).astype(np.float32)
WHOLE = RNG.integers(20, 200, size=(30, 50, 14)).astype(np.float32)


def named(name: str) -> bytes:
    return save({name: np.zeros(3, np.float32)})


def headed(header: object) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


DRESSES: dict[str, tuple[str, str | bytes]] = {
    "columns": ("provenance.json", json.dumps({"age": COLUMN, "dx": [0] * 1500})),
    "columns of booleans": ("provenance.json", json.dumps({"smoker": [True, False] * 700})),
    "columns in chunks": ("provenance.json", json.dumps({f"age-{at}": COLUMN[at : at + 50] for at in COLUMN[::50]})),
    "an object by person": ("provenance.json", json.dumps({f"p{row}": row for row in COLUMN})),
    "rows of objects": ("provenance.json", json.dumps({"rounds": PEOPLE})),
    "rows of lists": ("provenance.json", json.dumps([list(row.values()) for row in PEOPLE])),
    "rows of written numbers": ("provenance.json", json.dumps([[str(v) for v in row.values()] for row in PEOPLE])),
    "rows as texts": ("provenance.json", json.dumps({"reason": [f"{row};{row}.5" for row in COLUMN]})),
    "rows as names": ("provenance.json", json.dumps({f"{row},1": "lost" for row in COLUMN})),
    "CSV in a text": ("provenance.json", json.dumps({"reason": "\n".join(f"{row},1" for row in COLUMN)})),
    "a long text": ("provenance.json", json.dumps({"reason": "QUJD" * 20_000})),
    "two columns": ("model_card.md", "\n".join(f"{row},{row + 1}" for row in COLUMN)),
    "two columns with blanks": ("model_card.md", "\n".join(f"{row}   {row + 1}" for row in COLUMN)),
    "one column": ("model_card.md", "\n".join(map(str, COLUMN))),
    "one line": ("model_card.md", "; ".join(f"{row} {row}" for row in COLUMN)),
    "three dimensions": ("weights.safetensors", save({"a": np.zeros((1500, 14, 1), np.float32)})),
    "five dimensions": ("weights.safetensors", save({"a": np.zeros((2, 2, 2, 2, 2), np.float32)})),
    "a column for each tensor": (
        "weights.safetensors",
        save({name: np.zeros(1500, np.float32) for name in ("age", "dx")}),
    ),
    "whole numbers, folded": ("weights.safetensors", save({"a": WHOLE})),
    "integers": ("weights.safetensors", save({"a": WHOLE.astype(np.int64)})),
    "metadata": ("weights.safetensors", save({"a": NOISE}, metadata={"rows": "1,2,3\n" * 5000})),
    "a row as a name": ("weights.safetensors", named("63,145,233,1")),
    "a very long name": ("weights.safetensors", named("a" * 200)),
    "bytes behind the data": ("weights.safetensors", named("a") + b"63,145\n" * 50),
    "an element more in a header": (
        "weights.safetensors",
        headed({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0], "rows": PEOPLE}}),
    ),
    "a huge shape": (
        "weights.safetensors",
        headed({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}),
    ),
    "a header that is no object": ("weights.safetensors", headed([1])),
    "a deep header": ("weights.safetensors", (100_000).to_bytes(8, "little") + b"[" * 100_000),
    "a header without end": ("weights.safetensors", (1 << 62).to_bytes(8, "little") + b"{}"),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_rows_in_further_dresses_are_recognised(dress: str, tmp_path: Path) -> None:
    name, content = DRESSES[dress]
    path = tmp_path / "release/cardio-risk" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert code_of(lambda: look_for_rows(tmp_path)) == "VHT-PUBLICATION-ROWS"


def test_a_model_of_a_usual_form_does_not_look_like_rows(tmp_path: Path) -> None:
    wide = RNG.normal(size=(1024, 1024)).astype(np.float32)
    layers = {"first.weight": wide, "first.bias": wide[0], "conv.weight": NOISE.reshape(64, 16, 2, 2)}
    (tmp_path / "release").mkdir()
    (tmp_path / "release/weights.safetensors").write_bytes(save(layers))
    look_for_rows(tmp_path)


# --- replies of nodes -----------------------------------------------------------------------------------------------


def test_noised_replies_belong_to_a_bundle_under_their_names_only(tmp_path: Path) -> None:
    folder = tmp_path / "outputs/marginals-1"
    folder.mkdir(parents=True)
    (folder / "hospital-1.json").write_text(json.dumps({"positives": [1.5] * 400}))
    (folder / "hospital-1.safetensors").write_bytes(save({"sketch/age|sbp": np.ones(5_000, np.float32)}))
    (folder / "hospital-2.safetensors").write_bytes(b"")
    look_for_rows(tmp_path)
    for name in ("Hospital.json", "hospital-1.csv", "../hospital-1.json", "../train-x/hospital-1.json", "a/b.json"):
        other = (folder / name).resolve()
        other.parent.mkdir(exist_ok=True)
        other.write_text("{}")
        assert code_of(lambda: look_for_rows(tmp_path)) == "VHT-PUBLICATION-ROWS"
        other.unlink()
    (folder / "hospital-1.json").write_text(json.dumps({"family": "Muster"}))
    assert code_of(lambda: look_for_rows(tmp_path)) == "VHT-PUBLICATION-PERSONAL"

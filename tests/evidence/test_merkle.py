"""RFC 9162 hashing and proofs: the reference vectors of Certificate Transparency, and what any proof must do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vht_federate.evidence.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    hash_leaf,
    hash_node,
    inclusion_proof,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# The eight leaves and the nine roots of the reference implementation (certificate-transparency, merkle_tree_test).
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [hash_leaf(bytes.fromhex(text)) for text in INPUTS]

sizes = st.integers(1, 70)


def leaves_of(size: int) -> list[bytes]:
    return [hash_leaf(str(number).encode()) for number in range(size)]


def recursive_root(leaves: list[bytes]) -> bytes:
    """Section 2.1.1, as the RFC writes it."""
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY_ROOT
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hash_node(recursive_root(leaves[:split]), recursive_root(leaves[split:]))


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_the_reference_implementation(size: int) -> None:
    assert root_of(LEAVES[:size]).hex() == ROOTS[size]


def test_proofs_are_those_of_the_reference_implementation() -> None:
    assert [part.hex() for part in inclusion_proof(LEAVES, 0)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    assert [part.hex() for part in inclusion_proof(LEAVES[:3], 2)] == [ROOTS[2]]
    assert [part.hex() for part in consistency_proof(LEAVES, 1)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]


@given(size=st.integers(0, 70))
def test_the_frontier_grows_to_the_root_that_the_rfc_defines(size: int) -> None:
    frontier = Frontier()
    leaves = leaves_of(size)
    for number, leaf in enumerate(leaves):
        frontier.add(leaf)
        assert frontier.root() == recursive_root(leaves[: number + 1])
    assert (frontier.size, frontier.root()) == (size, recursive_root(leaves))


@given(size=sizes, data=st.data())
def test_every_leaf_is_included_and_no_other_place_or_leaf_is(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    index, root = data.draw(st.integers(0, size - 1)), root_of(leaves)
    proof = inclusion_proof(leaves, index)
    assert verify_inclusion(leaves[index], index, size, proof, root)
    assert not verify_inclusion(hash_leaf(b"other"), index, size, proof, root)
    other = data.draw(st.integers(-1, size + 1))
    assert verify_inclusion(leaves[index], other, size, proof, root) is (other == index)
    assert not verify_inclusion(leaves[index], index, size, [*proof, root], root)
    assert not proof or not verify_inclusion(leaves[index], index, size, proof[:-1], root)


@given(size=sizes, data=st.data())
def test_a_prefix_is_consistent_and_a_rewritten_one_is_not(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    first = data.draw(st.integers(1, size))
    root, proof = root_of(leaves), consistency_proof(leaves, first)
    assert verify_consistency(first, root_of(leaves[:first]), size, root, proof)
    spoiled = list(leaves)
    spoiled[data.draw(st.integers(0, first - 1))] = hash_leaf(b"rewritten")
    assert not verify_consistency(first, root_of(spoiled[:first]), size, root, proof)
    assert not verify_consistency(first, root_of(leaves[:first]), size, root_of(spoiled), proof)
    assert not verify_consistency(first, root_of(leaves[:first]), size, root, [*proof, root])


def test_sizes_outside_the_tree_are_refused() -> None:
    with pytest.raises(IndexError):
        inclusion_proof(LEAVES, 8)
    with pytest.raises(IndexError):
        consistency_proof(LEAVES, 0)
    assert not verify_consistency(0, EMPTY_ROOT, 8, root_of(LEAVES), [])
    assert not verify_consistency(9, root_of(LEAVES), 8, root_of(LEAVES), [])


def test_a_leaf_cannot_pose_as_a_node() -> None:
    left, right = LEAVES[0], LEAVES[1]
    assert hash_leaf(left + right) != hash_node(left, right)

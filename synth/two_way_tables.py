"""Which two-way tables a study may ask for: a tree over the inputs, and each input with the target.

With ``d`` inputs that is exactly ``2d - 1`` tables. The node checks it, so the sensitivity of a whole reply is known
before anybody asks: one patient is in one cell of each table.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from vht_federate.errors import RefusedError
from vht_federate.packaging.codebook import Codebook

__all__ = ["Pair", "all_pairs", "key_of", "read_pairs", "target_pairs"]

Pair = tuple[str, str]


def all_pairs(book: Codebook) -> list[Pair]:
    """Every pair of columns, in the codebook's order."""
    return list(combinations(book.order, 2))


def target_pairs(book: Codebook) -> list[Pair]:
    return [(name, book.target) for name in book.inputs]


def key_of(pair: Pair) -> str:
    """The name of a pair's table on the wire."""
    return f"{pair[0]}|{pair[1]}"


def read_pairs(book: Codebook, raw: Any) -> list[Pair]:
    """The pairs a coordinator asked for, in the codebook's order.

    Raises RefusedError VHT-REFUSED-PAIRS unless they are a spanning tree over the inputs and all target pairs, each
    once and in the codebook's column order.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, str) or len(raw) != 2 * len(book.inputs) - 1:
        raise _refused(f"expected exactly {2 * len(book.inputs) - 1} pairs")
    legal = {pair: index for index, pair in enumerate(all_pairs(book))}
    pairs: set[Pair] = set()
    for item in raw:
        if not isinstance(item, Sequence) or len(item) != 2 or not all(isinstance(name, str) for name in item):
            raise _refused("a pair is two column names")
        pair = (item[0], item[1])
        if pair not in legal or pair in pairs:
            raise _refused("a pair is unknown, reversed or asked for twice")
        pairs.add(pair)
    if not pairs.issuperset(target_pairs(book)):
        raise _refused("each input stands once with the target")
    if not _is_tree(book.inputs, [pair for pair in pairs if book.target not in pair]):
        raise _refused("the pairs of inputs form a tree")
    return sorted(pairs, key=legal.__getitem__)


def _is_tree(nodes: Sequence[str], edges: Sequence[Pair]) -> bool:
    """True for ``len(nodes) - 1`` edges without a cycle."""
    parent = {node: node for node in nodes}

    def root(node: str) -> str:
        while parent[node] != node:
            node = parent[node]
        return node

    for left, right in edges:
        if root(left) == root(right):
            return False
        parent[root(left)] = root(right)
    return len(edges) == len(nodes) - 1


def _refused(reason: str) -> RefusedError:
    return RefusedError(
        f"the two-way tables asked for do not fit the codebook: {reason}",
        code="VHT-REFUSED-PAIRS",
        hint="send what choose_pairs returned",
    )

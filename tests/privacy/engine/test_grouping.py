"""Every record once, every patient whole."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vht_federate.privacy.engine.grouping import micro_batches, ordered_patients, size_class

sizes = st.lists(st.one_of(st.integers(1, 4), st.integers(1, 60)), min_size=1, max_size=12)


def order_of(counts: list[int]) -> np.ndarray:
    patient = torch.repeat_interleave(torch.arange(len(counts)) * 2, torch.tensor(counts))
    return ordered_patients(patient, len(patient), 2 * len(counts))


@given(sizes, st.integers(1, 80))
def test_micro_batches_hold_whole_patients_in_order_within_the_bound(counts: list[int], at_once: int) -> None:
    record_counts = []
    for batch in micro_batches(order_of(counts), at_once):
        own = np.diff(batch.first).tolist()
        assert batch.large == (sum(own) > at_once)
        assert not batch.large or len(own) == 1
        record_counts += own
    assert record_counts == counts


@given(sizes, st.integers(1, 300))
def test_groups_take_each_record_once_and_mask_their_copies(counts: list[int], at_once: int) -> None:
    (batch,) = micro_batches(order_of(counts), 10_000)
    records = torch.arange(1.0, sum(counts) + 1)[:, None]
    first = np.concatenate([[0], np.cumsum(counts)])
    times_taken = torch.zeros(len(counts), dtype=torch.int64)
    for group in batch.groups(torch.device("cpu")):
        for chunk in group.chunks(at_once):
            members = torch.arange(len(counts))[chunk.members]
            times_taken[members] += 1
            assert group.each <= 1.25 * min(counts[member] for member in members.tolist()) + 1
            own = [records[first[member] : first[member + 1]].sum() for member in members.tolist()]
            assert torch.equal(chunk.take_gradient(records).sum((1, 2)), torch.stack(own))
            assert (chunk.take(records) > 0).all()
    assert (times_taken == 1).all()
    share = batch.share(torch.device("cpu"))
    weights = share if isinstance(share, torch.Tensor) else torch.full((len(records),), share, dtype=torch.float64)
    by_patient = torch.zeros(len(counts), dtype=torch.float64).index_add_(
        0, batch.by_record(torch.arange(len(counts))), weights
    )
    assert torch.allclose(by_patient, torch.ones_like(by_patient))


@given(st.integers(1, 2000))
def test_a_size_class_is_no_smaller_than_its_sizes_and_at_most_a_quarter_larger(size: int) -> None:
    assert size <= size_class(size) <= 1.25 * size

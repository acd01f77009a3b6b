"""Per-patient gradients of one kind of layer each."""

"""``vht demo``: the run, what only a demo can know (baselines, fidelity), its summary and its report."""

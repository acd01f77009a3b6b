"""The Flower app that a run submits: two names, no logic. A hospital's warm executor runs none of it."""

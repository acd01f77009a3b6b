"""``python -m vht_federate`` is the command ``vht``."""

from vht_federate.cli import main

main()

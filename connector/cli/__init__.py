"""``vht node`` and ``vht view``: thin commands over the modules of this room."""

"""Who may visit, under which permit, on whose data, at what cost; and everything that says no."""

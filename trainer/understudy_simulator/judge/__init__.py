"""The judge: everybody on the same arrivals, with the same luck, and figures that a sceptic can recompute."""

"""Programs that try to break the package; each prints its figures."""

"""One visible loop a model; what the loops share is in `common`."""

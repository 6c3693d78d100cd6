"""How good, how diverse, how original: measured the same way for every system."""

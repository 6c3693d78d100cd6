"""One file a model; torch and the standard library only; no model imports another."""

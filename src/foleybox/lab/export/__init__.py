"""Trained parts -> an instrument, and back."""

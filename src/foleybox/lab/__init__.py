"""The lab: torch. Real recordings become trained parts, and trained parts become an instrument."""

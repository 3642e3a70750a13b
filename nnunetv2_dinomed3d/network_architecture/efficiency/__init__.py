"""Same outputs up to rounding, with less memory or time."""

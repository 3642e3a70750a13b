"""Cheaper ways to the same outputs, up to rounding: in memory or in time. The method itself stands outside."""

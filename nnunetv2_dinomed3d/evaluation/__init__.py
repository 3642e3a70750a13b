"""Comparing trainings: measures, statistics, report. Imports neither torch nor anything else of this package."""

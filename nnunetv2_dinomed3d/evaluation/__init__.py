"""Comparing trained models: measures, statistics and the report. PyTorch and nnU-Net are not imported."""

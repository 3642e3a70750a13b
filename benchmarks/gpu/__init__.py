"""What the network costs on a GPU, measured: ``python -m benchmarks.gpu``. Needs neither nnU-Net nor data."""

"""The demo: a data set that is generated, nnU-Net's real commands on it, and a picture of the result."""

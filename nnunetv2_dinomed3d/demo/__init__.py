"""The demo: data of its own, nnU-Net's real commands, a picture."""

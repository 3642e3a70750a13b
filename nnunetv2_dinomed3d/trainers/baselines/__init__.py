"""Trainers of other papers' networks, a file each: the official recipe on nnU-Net's data, on the harness."""

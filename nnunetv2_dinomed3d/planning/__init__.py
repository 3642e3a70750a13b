"""Plans for this network on the data that nnU-Net has preprocessed."""

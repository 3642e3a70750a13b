"""The harness: nnU-Net's trainer with fault tolerance and checks, for any network."""

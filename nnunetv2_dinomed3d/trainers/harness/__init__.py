"""What any network's trainer needs on nnU-Net's hooks."""

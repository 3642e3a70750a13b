"""The paper's data sets, from their publishers' downloads to nnU-Net's raw format. No PyTorch."""

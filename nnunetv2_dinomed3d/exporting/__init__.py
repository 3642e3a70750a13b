"""A trained network as one file that runs without nnU-Net: ONNX, or a program of torch.export."""

"""Prediction of whole cases with a trained model of nnU-Net: the same segmentations as nnU-Net's, in less time."""

"""Costs of the network, against the plain formulation of the same mathematics and stock nnU-Net's network."""

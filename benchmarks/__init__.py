"""What the network costs, against the plain formulation of the same mathematics and stock nnU-Net's network."""

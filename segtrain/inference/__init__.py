"""How a network is asked for the labels of whole images."""

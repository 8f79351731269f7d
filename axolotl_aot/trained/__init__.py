"""What a YAML has trained: the YAML read again without training, and the weights that it left behind."""

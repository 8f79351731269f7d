"""Log-probabilities from hidden states: what the head costs beyond its matrix products."""

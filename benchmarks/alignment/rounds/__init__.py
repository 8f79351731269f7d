"""Rounds on a model's own answers: sampled, judged, trained on, and again."""

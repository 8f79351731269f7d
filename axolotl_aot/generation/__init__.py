"""Answers of causal language models: decoded, measured, written; knows neither the loss nor a trainer."""

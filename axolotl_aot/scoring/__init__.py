"""Log-probabilities of completions under any causal language model; knows neither the loss nor a trainer."""

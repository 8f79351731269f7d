"""Log-probabilities of completions under any causal language model; knows neither AOT nor axolotl."""

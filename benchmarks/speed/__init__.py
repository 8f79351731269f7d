"""Seconds and memory of training, against TRL's trainer and Liger's fused DPO loss.

    python -m benchmarks.speed                       # the cases of SPEED.md
    python -m benchmarks.speed --cases fixed --steps 2
    python -m benchmarks.speed --model llama-3-8b --adapter qlora --lengths 2048 --micro-batch 1 2 4 8 16
    python -m benchmarks.speed --cases fixed --peer-python /path/to/other/venv/bin/python
    python -m benchmarks.speed --cli --data pairs.jsonl
    python -m benchmarks.speed --head
    python -m benchmarks.speed --profile

Without a mode, every contender trains the same model on the same tokens, each in a fresh process, in turn. A
step is all that happens from one optimizer step to the next. Memory is the peak of a step above what the
process held when the model was loaded: on a GPU the allocator's, on a CPU the resident set. Times are
medians.

--cli: `axolotl train` on one YAML, as a user would compare. --head: log-probabilities from hidden states,
against the bare matrix product. --profile: where a step's time goes. Each result is printed as it comes, as
a line `RESULT {json}`, and a Markdown table follows.
"""

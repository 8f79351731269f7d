"""Many small runs at once, to search with: hundreds of adapters of one base model in one forward pass.

Run `python -m benchmarks.alignment.batched` on a machine with a GPU; see `command`. What is chosen here is
trained and measured by `axolotl train` in `benchmarks.alignment`.
"""

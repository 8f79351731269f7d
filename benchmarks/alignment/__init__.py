"""Which of the paper's findings hold on a small task whose true reward is known.

    python -m benchmarks.alignment            # all cells; hours on two cores, resumable
    python -m benchmarks.alignment --small    # minutes

`task` makes the model and the data; a cell (`cells`) is one run, which `runs` trains through axolotl's own
command and `scores` scores. `plan` says how far is searched, `searches` and `comparisons` which cells that
takes; `tables` and `figures` show what came out, `template.md` says it. See RESULTS.md.
"""

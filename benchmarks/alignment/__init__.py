"""Which of the paper's findings hold on a small task whose true reward is known.

    python -m benchmarks.alignment            # all cells; hours on two cores, resumable
    python -m benchmarks.alignment --small    # minutes

`task` makes the model and the data, `cells` lists what is trained, `runs` trains and scores one cell
through axolotl's own command, `tables` and `figures` show the results. See RESULTS.md.
"""

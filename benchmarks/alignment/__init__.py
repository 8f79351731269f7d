"""Which of the paper's findings hold on a small task whose true reward is known.

    python -m benchmarks.alignment            # all cells; hours on two cores, resumable
    python -m benchmarks.alignment --small    # minutes

`tasks` says what is asked, `base_model` and `preferences` make each one's model and data. A cell (`cells`)
is one run, which `runs` trains through axolotl's own command and `scores` scores. `plan` says how far is
searched, `searches`, `contenders` and `comparisons` which cells that takes, `settings` and `choices` with
which keys; `tables` and `figures` show what came out, `template.md` says it. See RESULTS.md.
"""

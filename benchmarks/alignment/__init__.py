"""Which of the paper's findings hold, and which settings do best, on small tasks with known true rewards.

    python -m benchmarks.alignment            # all cells; hours on two cores, resumable
    python -m benchmarks.alignment --small    # minutes

`tasks` says what is asked, `base_model` and `preferences` make each one's model and data. A cell (`cells`)
is one run, which `runs` trains through axolotl's own command and `scores` scores. `plan` says how far is
searched, `searches`, `contenders` and `comparisons` which cells that takes, `settings` and `choices` with
which keys. What came out is shown by `tables` (of the paper's setting), `setting_tables`, `search_tables`
(of what `batched` found, which `searched` reads) and `figures`; `sections` names them for `template.md`,
which says it. See RESULTS.md.
"""

"""Preference data as people have it: from rows of any shape to tokens that the trainers take.

From the bottom up: what a row gives (`rows`), an entry of `datasets:` and its options (`entry`,
`messages`, `thresholds`), one module per `type:` (`chat_template`, `pairs`, `scored`, `ranked`,
`axolotl_types`), the table of them (`types`); then text and tokens (`rendering`), batches of rows
(`mapping`), what became of them (`accounts`), and whole data sets (`pipeline`). Imports nothing here.
"""

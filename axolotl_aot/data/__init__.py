"""Preference data as people have it: from rows of any shape to tokens that the trainers take.

What a row gives (`rows`), what an entry of `datasets:` may say (`entry`; `messages`, `message_columns` and
`transcripts` for conversations; `thresholds` for scores), and one module per `type:` with a table of all
(`types`). Then an entry's rows and what is kept of them (`files`), text and tokens (`rendering`), samples and
what became of them (`mapping`, `row_counts`), the balance of labels (`labels`) and the evaluation set
(`splitting`). `pipeline` puts these together for a run.
"""

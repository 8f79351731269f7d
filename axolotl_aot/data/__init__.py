"""Preference data as people have it: from rows of any shape to tokens that the trainers take.

What a row gives (`rows`), what an entry of `datasets:` may say (`entry`, `messages` for conversations,
`thresholds` for scores), and one module per `type:` with a table of all (`types`). Then an entry's rows
(`sources`), its chat template (`templates`), text and tokens (`rendering`), samples with what became of
them (`mapping`, `row_counts`), the balance of labels (`labels`), and what is kept on the disk (`prepared`).
`pipeline` puts these together for a run.
"""

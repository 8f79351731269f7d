"""From messages to text by a chat template, and from text to tokens.

Which template (`templates`), the text and its tokens (`renderer`, `prefixes`), and whether the template has
left anything out (`completeness`; with `skeletons`, `parts` and `pieces` of conversations).
"""

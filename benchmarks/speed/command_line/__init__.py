"""`axolotl train` on one YAML, for ours and for `rl: dpo` with TRL's aot: a user's comparison.

Every contender trains the same rows, all of them once, so that it does not matter for the whole run in which
order: of single steps that is not so.
"""

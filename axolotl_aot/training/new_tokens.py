"""Policy and reference begin as the same model, also where tokens were added to it.

A token that the base model does not know (`tokens`, `special_tokens`, a new pad token) gets a new row in the
embeddings, and `resize_token_embeddings_to_32x` adds some more. transformers draws these rows at random each
time a model is loaded: the policy, the reference, both of them in each process, in a run that is resumed and
in a report. They are one model only if all of them draw the same rows.
"""

import torch

# Not the YAML's `seed`: runs with other seeds, and their report, must have the same reference.
SEED = 0


def draw_weights_alike() -> None:
    """Called before a model is read and before its embeddings are made longer: every load draws the same
    weights, new rows and what else its files lack.

    What is drawn after that comes from the YAML's `seed`, which the trainer sets.
    """
    torch.manual_seed(SEED)

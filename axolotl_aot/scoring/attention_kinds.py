"""What an attention function of transformers is, whatever it is called.

Flash attention has many names: one for each version of its package, which axolotl may exchange for a newer
one, and one for each kernel of the Hub and revision of it. So it is known by what transformers registered
under the name, not by a list.
"""

from inspect import unwrap

from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FLASH = "flash attention"  # of any version
BY_POSITIONS = "attention by positions"  # others that no mask over pairs of tokens is made for, as xformers


def attention_kind(attention: str) -> str:
    """`FLASH`, `BY_POSITIONS`, or for all others, as "sdpa", the name itself.

    Args:
        attention: as transformers has it in a loaded model's configuration.
    """
    if ALL_MASK_ATTENTION_FUNCTIONS.get(attention) is not flash_attention_mask:
        return attention
    function = ALL_ATTENTION_FUNCTIONS.get(attention)
    return FLASH if function and unwrap(function) is flash_attention_forward else BY_POSITIONS

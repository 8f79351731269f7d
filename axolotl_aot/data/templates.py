"""Which chat template renders the rows of an entry: the entry's own, the YAML's or the tokenizer's."""

from axolotl.utils.chat_templates import get_chat_template
from axolotl.utils.dict import DictDefault
from transformers import PreTrainedTokenizerBase

from axolotl_aot.data.entry import Entry
from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.errors import AOTDataError


def template_of(entry: Entry, cfg: DictDefault, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template, in Jinja; None for an entry whose rows are text already.

    Raises:
        AOTDataError: there is none.
        ValueError: axolotl knows no template of the name that the entry gives.
    """
    if not isinstance(entry, TemplateEntry):
        return None
    if cfg.tokenizer_use_mistral_common:
        raise AOTDataError(
            f"`tokenizer_use_mistral_common: true` has no chat template, and `type: {entry.type}` needs "
            "one; remove it, and set chat_template"
        )
    jinja = entry.chat_template_jinja
    choice = entry.chat_template or ("jinja" if jinja else None)
    if choice is not None:
        return get_chat_template(choice, jinja, tokenizer)
    # axolotl has given the tokenizer the template that the YAML names
    if not tokenizer.chat_template:
        raise AOTDataError(
            f"`type: {entry.type}`: the tokenizer has no chat template; set one, such as "
            "`chat_template: chatml`"
        )
    return tokenizer.get_chat_template()

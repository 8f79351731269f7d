"""Which chat template renders the rows of an entry: the entry's own, the YAML's or the tokenizer's."""

from typing import Any

from axolotl.utils.chat_templates import get_chat_template
from axolotl.utils.dict import DictDefault
from transformers import PreTrainedTokenizerBase

from axolotl_aot.data.entry import Entry
from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.data.rows import BadRow
from axolotl_aot.errors import AOTDataError

# A chat template in Jinja; or the named ones of a tokenizer that has several: each row takes one of them.
Template = str | dict[str, str]

# The names by which transformers chooses: for a conversation with tools, and for all others.
FOR_TOOLS, FOR_ALL = "tool_use", "default"


def template_of(entry: Entry, cfg: DictDefault, tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """The chat template; None for an entry whose rows are text already.

    Raises:
        AOTDataError: there is none, or none among several that a row without tools could take.
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
    # without a choice: axolotl has given the tokenizer the template that the YAML names
    template = tokenizer.chat_template if choice is None else get_chat_template(choice, jinja, tokenizer)
    if not template:
        raise AOTDataError(
            f"`type: {entry.type}`: the tokenizer has no chat template; set one, such as "
            "`chat_template: chatml`"
        )
    if isinstance(template, dict) and not {FOR_TOOLS, FOR_ALL} & set(template):
        raise AOTDataError(f"`type: {entry.type}`: {_no_default(template)}")
    return template


def template_for(template: Template, tools: list[dict[str, Any]] | None) -> str:
    """The chat template of a conversation, as `tokenizer.apply_chat_template` chooses it.

    Raises:
        BadRow: the tokenizer has several, and none for a conversation without tools.
    """
    if isinstance(template, str):
        return template
    if tools is not None and FOR_TOOLS in template:
        return template[FOR_TOOLS]
    if FOR_ALL not in template:
        raise BadRow(f"it has no tools, and {_no_default(template)}")
    return template[FOR_ALL]


def _no_default(templates: dict[str, str]) -> str:
    names = ", ".join(sorted(templates))
    return (
        f"the tokenizer has several chat templates ({names}), and none of them is named `{FOR_ALL}`; set "
        "`chat_template: jinja` and `chat_template_jinja:` to the file of one of them, or another "
        "chat_template"
    )

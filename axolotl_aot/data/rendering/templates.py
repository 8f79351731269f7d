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


def template_of(entry: Entry, cfg: DictDefault, tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """The chat template; None for an entry whose rows are text already.

    Raises:
        AOTDataError: there is none, or none among several that a row without tools could take.
        ValueError: axolotl knows no template of the name that the entry gives.
    """
    if not isinstance(entry, TemplateEntry) or not entry.needs_template():
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
    if isinstance(template, dict) and not any(_chosen(tokenizer, tools) for tools in (None, [])):
        raise AOTDataError(f"`type: {entry.type}`: {_none_to_choose(template)}")
    return template


def template_for(
    template: Template, tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None
) -> str:
    """The chat template of a conversation; of a tokenizer's named ones, that which the tokenizer chooses.

    Raises:
        BadRow: it has none for a conversation without tools.
    """
    if isinstance(template, str):
        return template
    chosen = _chosen(tokenizer, tools)
    if chosen is None:
        raise BadRow(f"it has no tools, and {_none_to_choose(template)}")
    return chosen


def _chosen(tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None) -> str | None:
    """What the tokenizer chooses of its named templates, mostly `tool_use` where there are tools."""
    try:
        return tokenizer.get_chat_template(tools=tools)
    except ValueError:
        return None


def _none_to_choose(templates: dict[str, str]) -> str:
    names = ", ".join(sorted(templates))
    return (
        f"the tokenizer has several chat templates ({names}), and none of them is named `default`; set "
        "`chat_template: jinja` and `chat_template_jinja:` to the file of one of them, or another "
        "chat_template"
    )

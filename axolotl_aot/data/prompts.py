"""Prompts alone, to be answered: read by an entry of `datasets:`, and rendered as in training.

The rows may be those that the entry reads in training, whose prompts are taken; or rows of prompts only.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger

from axolotl_aot.data.entry import USUAL_COLUMNS, Entry, LabelledEntry, Source
from axolotl_aot.data.files.sources import READ_ERRORS, Rows, described, load_rows
from axolotl_aot.data.messages import TemplateEntry
from axolotl_aot.data.rendering.renderer import PROBE, Renderer
from axolotl_aot.data.rendering.templates import template_of
from axolotl_aot.data.rows import ROW_NUMBERS, BadRow, Example, Message, formatted_text, require_field
from axolotl_aot.data.types import parse
from axolotl_aot.data.types.axolotl_types import AxolotlType
from axolotl_aot.data.types.chat_template import ChatTemplate
from axolotl_aot.errors import AOTDataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LOG = get_logger(__name__)

PROBE_MESSAGES = [{"role": "assistant", "content": PROBE}]
# What may stand in place of an answer that a prompt does not have yet, for axolotl's types: they read a text,
# or a conversation.
STAND_INS: tuple[Any, ...] = (
    PROBE,
    [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}],
)


class Prompt(NamedTuple):
    """A prompt as the model gets it.

    row: the number of its first row in the source, from 1. messages: or its text, if it is formatted already.
    ids: its tokens. before, after: what the rendered text has between the prompt and an answer's own text,
    and behind it, its end token included.
    """

    row: int
    messages: list[Message] | str
    tools: list[dict[str, Any]] | None
    text: str
    ids: list[int]
    before: str
    after: str

    @property
    def is_text(self) -> bool:
        """Whether it is formatted already, so that no chat template is applied."""
        return isinstance(self.messages, str)


class Prompts(NamedTuple):
    """The different prompts of a source, in its order. bad: rows that were left out. again: repeated ones."""

    prompts: list[Prompt]
    renderer: Renderer
    bad: int
    again: int


class PromptRows(TemplateEntry):
    """Conversations without answers; of one that ends with the assistant's turn, what comes before it."""

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        messages = self.conversation(row)
        answered = bool(messages) and messages[-1]["role"] == "assistant"
        prompt = self.prompt(row, messages[:-1] if answered else None)
        yield Example(prompt, (PROBE_MESSAGES,), True, self.tools(row))


class TextRows(Entry):
    """Prompts that are formatted already."""

    field_text_prompt: str | None = None

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        text = formatted_text(require_field(row, self.field_text_prompt), self.field_text_prompt)
        yield Example(text, (PROBE,), True)


def read_prompts(
    path: str, raw_entry: dict[str, Any], rl: str, cfg: DictDefault, tokenizer: "PreTrainedTokenizerBase"
) -> Prompts:
    """The prompts in a file, a folder or a data set of the hub.

    raw_entry: of `datasets:`; its options that concern prompts apply where the source has their columns.

    Raises:
        AOTDataError: the source cannot be read, holds no prompts, or has a row that cannot be used.
    """
    where = f"--prompts {path}"
    own = parse(rl, {**raw_entry, "path": path, "split": "train"}, where)
    try:
        rows = load_rows(own, cfg.hf_use_auth_token)
        entry, dataset = _prompt_entry(own, rows, cfg, tokenizer, where)
        template = template_of(entry, cfg, tokenizer)
    except READ_ERRORS as error:
        raise AOTDataError(f"{where}: {described(error)}") from error
    renderer = Renderer(tokenizer, template, cfg.chat_template_kwargs or {})
    reader = _Reader(entry, renderer, where, rows)
    prompts = list(reader.prompts(reader.examples(dataset)))
    if not prompts:
        raise AOTDataError(f"{where}: no row is left to use")
    if reader.bad:
        LOG.warning(f"{where}: {len(reader.bad):,} bad rows left out; the first is {reader.bad[0]}")
    return Prompts(prompts, renderer, len(reader.bad), reader.again)


# --- Which entry reads the rows ------------------------------------------------------------------


def _prompt_entry(
    own: Entry, rows: Rows, cfg: DictDefault, tokenizer: "PreTrainedTokenizerBase", where: str
) -> "tuple[Entry, Dataset]":
    """The entry for the source's prompts: the YAML's own where its answers are there as well."""

    def prepared(entry: Entry, dataset: "Dataset") -> "tuple[Entry, Dataset]":
        known = [{**entry.source(), "type": entry.type}]
        source = Source(dataset, cfg, 0, known, tokenizer, text_only=rows.text_only, where=where)
        return entry.prepare(source)

    columns = rows.dataset.column_names
    if isinstance(own, AxolotlType):
        return prepared(_own_type(own), _with_stand_ins(own, rows.dataset, prepared))
    try:
        entry, dataset = prepared(own, rows.dataset)
    except AOTDataError as error:
        entry, reason = None, error
    # without a column of completions, a conversation may or may not end with one
    if entry is not None and not (isinstance(entry, ChatTemplate) and entry.field_completion is None):
        return entry, dataset
    alone, dataset = prepared(_without_answers(own, columns), rows.dataset)
    if alone.field_messages is not None:
        return alone, dataset
    if texts := next((name for name in USUAL_COLUMNS["field_text_prompt"] if name in columns), None):
        return prepared(
            TextRows(path=own.path, field_text_prompt=texts, on_bad_rows=own.on_bad_rows), dataset
        )
    names = ", ".join(USUAL_COLUMNS["field_messages"])
    also = "" if entry is not None else f" (as rows with answers: {reason})"
    raise AOTDataError(f"no column holds prompts ({names}). Columns: {', '.join(columns)}.{also}")


def _without_answers(own: TemplateEntry, columns: list[str]) -> PromptRows:
    """The entry's options that concern prompts, without those that name a column which is not there."""
    options = own.model_dump(exclude_unset=True, include=set(PromptRows.model_fields) - {"field_weight"})
    given = {
        key: value
        for key, value in options.items()
        if key != "type" and not (key.startswith("field_") and value not in columns)
    }
    return PromptRows(**given)


def _own_type(own: AxolotlType) -> AxolotlType:
    """An entry of axolotl's without what its rows of prompts need not have: a weight, a label."""
    labelled = {"label": True, "field_label": None} if isinstance(own, LabelledEntry) else {}
    return own.model_copy(update={"field_weight": None, **labelled})


def _with_stand_ins(own: AxolotlType, dataset: "Dataset", prepared: Any) -> "Dataset":
    """The rows with something in the columns of answers that they lack, which the type can read."""
    missing = [
        column for column in own.read_columns(dataset.column_names) if column not in dataset.column_names
    ]
    if not missing:
        return dataset
    tried = [_with_columns(dataset, dict.fromkeys(missing, value)) for value in STAND_INS]
    for candidate in tried:
        entry, ready = prepared(_own_type(own), candidate)
        try:
            next(iter(entry.examples(ready[0])))
        except BadRow:
            continue
        return candidate
    return tried[0]


def _with_columns(dataset: "Dataset", columns: dict[str, Any]) -> "Dataset":
    for name, value in columns.items():
        dataset = dataset.add_column(name, [value] * len(dataset))
    return dataset


# --- Rows to prompts -----------------------------------------------------------------------------


class _Reader:
    """Reads a source's rows one by one, and notes which of them are bad, or repeat a prompt."""

    def __init__(self, entry: Entry, renderer: Renderer, where: str, rows: Rows):
        self._entry = entry
        self._renderer = renderer
        self._where = where
        self._rows = rows
        self.bad: list[str] = []
        self.again = 0

    def examples(self, dataset: "Dataset") -> Iterator[tuple[int, Example]]:
        """Each different prompt with the number of its row; in place of its answers, a made-up one."""
        seen = set()
        for index, row in enumerate(dataset):
            number = row.get(ROW_NUMBERS, [index + 1])[0]
            try:
                found = list(self._entry.examples(row))
            except BadRow as reason:
                self._refuse(reason, reason.row or number)
                continue
            for item in found:
                if isinstance(item, BadRow):
                    self._refuse(item, item.row or number)
                    continue
                key = json.dumps([item.prompt, item.tools], default=str, sort_keys=True)
                if key in seen:
                    self.again += 1
                    continue
                seen.add(key)
                yield item.row or number, self._asking(item, row)

    def _asking(self, example: Example, row: Mapping[str, Any]) -> Example:
        """The example with one made-up answer; of text, within what the type writes around the row's own."""
        if not isinstance(example.prompt, str):
            return example._replace(completions=(PROBE_MESSAGES,))
        typed = isinstance(self._entry, AxolotlType)
        return example._replace(completions=(self._entry.framed(row, PROBE) if typed else PROBE,))

    def prompts(self, examples: Iterable[tuple[int, Example]]) -> Iterator[Prompt]:
        """The examples' prompts, rendered."""
        for number, example in examples:
            try:
                text = self._renderer.text(example)
            except BadRow as reason:
                self._refuse(reason, number)
                continue
            ids = self._renderer.tokenizer(text.prompt, add_special_tokens=text.special)["input_ids"]
            before, _, after = text.wholes[0][len(text.prompt) :].partition(PROBE)
            yield Prompt(number, example.prompt, example.tools, text.prompt, ids, before, after)

    def _refuse(self, reason: BadRow, number: int) -> None:
        text = f"row {number + self._rows.first - 1}: {reason}"
        if self._entry.on_bad_rows == "error":
            raise AOTDataError(
                f"{self._where}, {text}. (`on_bad_rows: drop` in the YAML's entry leaves such rows out.)"
            ) from reason
        self.bad.append(text)

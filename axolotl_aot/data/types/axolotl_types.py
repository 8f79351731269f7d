"""axolotl's own data set types, `user_defined` and custom modules among them: rows that are text already."""

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from axolotl.utils.logging import get_logger
from pydantic import PrivateAttr, model_validator

from axolotl_aot.data.entry import USUAL_COLUMNS, Entry, LabelledEntry, Source
from axolotl_aot.data.files.fingerprint import file_digest
from axolotl_aot.data.rows import BadRow, Example, is_blank, not_text, require_field
from axolotl_aot.data.types.row_text import ROW_ERRORS, Transform, require_text, unread_messages
from axolotl_aot.errors import AOTDataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LOG = get_logger(__name__)

LOOKED_AT = 100  # rows in which turns are looked for that a type does not read
# Types of axolotl's that do not read what their name says, and what to use instead.
MISREADING = {
    "zephyr.nectar": "takes the answer with the worst rank as chosen, and the second worst as rejected; use "
    "`type: ranked` with field_completions: answers, field_completion: answer, field_rank: rank",
}


class AxolotlType(Entry):
    """A type whose function, axolotl's or the user's own, turns a row into texts.

    An entry without a `type:` has no such function: its columns are the texts. loader: the module of axolotl
    that finds the function. texts: the completions' columns. user_defined: the keys of a `type:` that is a
    mapping.
    """

    loader: ClassVar[str]
    texts: ClassVar[tuple[str, ...]]
    user_defined: ClassVar[set[str]]
    _transform: Transform | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _known_keys(self) -> "AxolotlType":
        if isinstance(self.type, dict):
            for key in self.type:
                if key not in self.user_defined:
                    raise ValueError(
                        f"`type: {key}`: not a key of a user-defined type; known: "
                        f"{', '.join(sorted(self.user_defined))}"
                    )
        return self

    def prepare(self, source: Source) -> "tuple[AxolotlType, Dataset]":
        entry, dataset = super().prepare(source)
        self._require_one_end(source.tokenizer)
        if self.type is None:
            return entry, dataset
        transform, map_kwargs = self._loaded(source)
        if map_kwargs.get("batched"):
            columns = map_kwargs.pop("remove_columns", None)
            columns = dataset.column_names if columns == "__all__" else columns
            return entry, dataset.map(transform, remove_columns=columns, **map_kwargs)
        entry._transform = transform
        entry._warn_of_misreading(dataset, source.where)
        return entry, dataset

    def _require_one_end(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Text gets an end token where it has none; a tokenizer that adds one would add a second."""
        text = "a"
        added = tokenizer(text)["input_ids"][-1:], tokenizer(text, add_special_tokens=False)["input_ids"][-1:]
        if added[0] != added[1] and added[0] == [tokenizer.eos_token_id]:
            kind = "an entry without a `type:`" if self.type is None else f"`type: {self.type}`"
            raise AOTDataError(
                f"{kind}: the tokenizer adds its end token, {tokenizer.eos_token}, to every text by itself, "
                "and such rows would end with two; name a copy of it in `tokenizer_config` whose "
                "tokenizer_config.json says `add_eos_token: false` (or whose tokenizer.json adds none), or "
                "use `type: chat_template`"
            )

    def _warn_of_misreading(self, dataset: "Dataset", where: str) -> None:
        """Say what the type does not read of its rows, as far as the first ones show it."""
        if advice := MISREADING.get(str(self.type)):
            LOG.warning(f"{where}: `type: {self.type}` {advice}")
        first_rows = dataset.select(range(min(LOOKED_AT, len(dataset))))
        texts = ("prompt", *self.texts)
        passed_over = {
            c: n for row in first_rows for c, n in unread_messages(row, self._transform, texts).items()
        }
        for column, count in passed_over.items():
            LOG.warning(
                f"{where}: `type: {self.type}` does not read all turns of a conversation: it passes over "
                f"{count} of the messages of `{column}` in one of the first rows; `type: chat_template` "
                "reads all"
            )

    def code_digest(self) -> str | None:
        *_, module, _ = ["", "", *(self.type if isinstance(self.type, str) else "").split(".")]
        spec = find_spec(module) if module else None  # axolotl looks for a module of the user's first
        return (
            file_digest(Path(spec.origin)) if spec and spec.origin and Path(spec.origin).is_file() else None
        )

    def _loaded(self, source: Source) -> tuple[Transform, dict[str, Any]]:
        from importlib import import_module

        from axolotl.utils.dict import DictDefault

        name = "user_defined.default" if isinstance(self.type, dict) else self.type
        # axolotl's functions read their entry from `datasets`, also where it is one of `test_datasets`
        cfg = DictDefault({**source.cfg, "datasets": source.entries})
        loaded = import_module(self.loader).load(name, cfg, dataset_idx=source.position)
        if loaded is None:
            raise AOTDataError(
                f"`type: {name}`: neither a type of axolotl-aot nor one that axolotl can load; the warning "
                "above says why"
            )
        transform, map_kwargs = loaded if isinstance(loaded, tuple) else (loaded, {})
        if "tokenizer" in inspect.signature(transform).parameters:
            transform = partial(transform, tokenizer=source.tokenizer)
        return transform, map_kwargs

    def transformed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with the texts that the type's function makes of it."""
        transform = self._transform
        if transform is None:
            return dict(row)
        try:
            made = transform(dict(row))
        except ROW_ERRORS as error:
            null = [name for name, value in row.items() if value is None]
            hint = f"; null: {', '.join(null)}" if null else ""
            raise BadRow(
                f"`type: {self.type}` cannot read it ({type(error).__name__}: {error}){hint}"
            ) from error
        require_text(row, transform, made, ("prompt", *self.texts), self._system_columns())
        return {**row, **made}

    def read_columns(self, columns: list[str]) -> tuple[str, ...]:
        """The columns that the type reads answers from, in a data set with these; by their usual names."""
        given = self.type if isinstance(self.type, dict) else {}
        return tuple(
            given.get(f"field_{name}")
            or next((usual for usual in USUAL_COLUMNS[f"field_{name}"] if usual in columns), name)
            for name in self.texts
        )

    def framed(self, row: Mapping[str, Any], text: str) -> str:
        """The completion that the type makes of an answer `text` in place of the row's own."""
        columns = self.read_columns(list(row))
        marked = {**row, **{column: _with_text(row.get(column), text) for column in columns}}
        completion = self.text(self.transformed(marked), self.texts[0])
        return completion if text in completion else text

    def _system_columns(self) -> set[str]:
        """The columns in which blank text says that there is no system message."""
        return {"system", self.type.get("field_system")} if isinstance(self.type, dict) else {"system"}

    def text(self, row: Mapping[str, Any], field: str) -> str:
        """A text of the transformed row.

        Raises:
            BadRow: it is missing, empty or no text.
        """
        if self.type is None and field not in row:
            raise BadRow(f"without a `type:`, the text must stand in columns prompt, {', '.join(self.texts)}")
        text = require_field(row, field)
        if not isinstance(text, str):
            if not isinstance(text, list):
                raise not_text(text, field)
            raise BadRow(
                f"field `{field}`: expected text, found {text!r:.80}; `type: chat_template` reads messages"
            )
        if is_blank(text):
            raise BadRow(f"field `{field}` is empty")
        return text


def _with_text(answer: Any, text: str) -> Any:
    """An answer with another text: of a conversation, its last message's."""
    if not isinstance(answer, list) or not answer or not isinstance(answer[-1], Mapping):
        return text
    last = {key: text if key in ("content", "value") else value for key, value in answer[-1].items()}
    return [*answer[:-1], last]


class KTOType(AxolotlType, LabelledEntry):
    """For `rl: aot_unpaired`: axolotl's KTO types."""

    loader: ClassVar = "axolotl.prompt_strategies.kto"
    texts: ClassVar = ("completion",)
    optional: ClassVar = {"field_label"}
    user_defined: ClassVar = {
        "field_system",
        "field_prompt",
        "field_completion",
        "field_label",
        "prompt_format",
        "completion_format",
    }

    def read_columns(self, columns: list[str]) -> tuple[str, ...]:
        # functions of a user-defined type write the label as well
        label = (self.type.get("field_label") or "label",) if isinstance(self.type, dict) else ()
        return (*super().read_columns(columns), *label)

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        given = self.transformed(row)
        yield Example(
            self.text(given, "prompt"),
            (self.text(given, "completion"),),
            self.label_of(given),
            weight=self.weight(row),
        )


class DPOType(AxolotlType):
    """For `rl: aot`: axolotl's DPO types."""

    loader: ClassVar = "axolotl.prompt_strategies.dpo"
    texts: ClassVar = ("chosen", "rejected")
    user_defined: ClassVar = {
        "field_system",
        "field_prompt",
        "field_chosen",
        "field_rejected",
        "prompt_format",
        "chosen_format",
        "rejected_format",
    }

    def answer_columns(self) -> tuple[str, ...]:
        names = self.type if isinstance(self.type, dict) else {}
        return tuple(names.get(f"field_{name}") or name for name in self.texts)

    def examples(self, row: Mapping[str, Any]) -> Iterator[Example]:
        given = self.transformed(row)
        completions = tuple(self.text(given, name) for name in self.texts)
        yield Example(self.text(given, "prompt"), completions, True, weight=self.weight(row))

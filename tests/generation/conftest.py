"""A tiny model that has learnt to answer and to stop, and the command on it."""

from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.tiny import WORDS, make_model, without_report

QUESTIONS = [f"{first} {second}?" for first in WORDS for second in WORDS]


@pytest.fixture(scope="session")
def speaker(tmp_path_factory) -> Path:
    """A 2-layer Llama that answers with a few words and an end token, to chats and to plain text."""
    folder = tmp_path_factory.mktemp("speaker")
    make_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        texts = [_conversation(tokenizer, generator, chat=number % 2 == 0) for number in range(16)]
        batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def _conversation(tokenizer, generator, chat: bool) -> str:
    def draw(count: int) -> list[str]:
        return [WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator).tolist()]

    question = " ".join(draw(2)) + "?"
    answer = " ".join(draw(1 + int(torch.randint(3, (), generator=generator))))
    if not chat:
        return f"<s>{question} {answer}</s>"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.fixture
def chat(base_config, speaker) -> dict:
    """A YAML of conversations, whose own data set does not exist."""
    entry = {"path": "nowhere.jsonl", "type": "chat_template"}
    return {**base_config, "base_model": str(speaker), "rl": "aot", "datasets": [entry]}


@pytest.fixture
def text(chat) -> dict:
    """A YAML of texts that are formatted already."""
    return {**chat, "datasets": [{"path": "nowhere.jsonl", "type": {"field_prompt": "prompt"}}]}


@pytest.fixture
def call(tmp_path, axolotl_imported, monkeypatch):
    """The command on a config dict, in a folder of its own; returns click's result, and the file it wrote."""
    from axolotl_aot.cli import sample

    monkeypatch.chdir(tmp_path)

    def call(config: dict, prompts: Path, *arguments: object, out: str = "answers.jsonl", base: bool = True):
        path = tmp_path / "run.yml"
        path.write_text(yaml.safe_dump(without_report(config)))
        words = [
            path,
            "--prompts",
            prompts,
            "--out",
            tmp_path / out,
            *(["--base"] if base else []),
            *arguments,
        ]
        result = CliRunner().invoke(sample, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result, tmp_path / out

    return call

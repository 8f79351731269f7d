"""YAMLs that the commands on trained models cannot read: one paragraph that names key, value and remedy."""

import pytest
import yaml
from click.testing import CliRunner

from tests.tiny import without_report

COMMANDS = {"report": [], "sample": ["--prompts", "prompts.jsonl", "--out", "answers.jsonl"]}


@pytest.fixture(params=COMMANDS)
def refused(request, tmp_path, monkeypatch, axolotl_imported):
    """What a command says of a YAML's text, or of a config, behind `Error: `; it has written no answers."""
    from axolotl_aot import cli

    monkeypatch.chdir(tmp_path)

    def refused(config: dict | bytes) -> str:
        text = config if isinstance(config, bytes) else yaml.safe_dump(without_report(config)).encode()
        (tmp_path / "run.yml").write_bytes(text)
        result = CliRunner().invoke(getattr(cli, request.param), ["run.yml", *COMMANDS[request.param]])
        assert isinstance(result.exception, SystemExit), result.exception  # and no traceback
        assert result.exit_code == 1 and not (tmp_path / "answers.jsonl").exists()
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert result.output.strip().endswith(line)  # a single paragraph, and the last thing said
        return line.removeprefix("Error: ")

    return refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"micro_batch_size": "many"}, ["`micro_batch_size: many`: should be a valid integer"]),
        ({"learning_rate": "fast"}, ["`learning_rate: fast`: "]),
        ({"sequence_len": [1]}, ["`sequence_len: [1]`: should be a valid integer"]),
        ({"bf16": "maybe"}, ["`bf16: maybe`: should be 'auto', or should be a valid boolean"]),
        ({"chat_template": "chatm"}, ["`chat_template: chatm`: should be ", "Did you mean 'chatml'?"]),
        (
            {"special_tokens": {"pad_token": [1]}},
            ["`special_tokens.pad_token: [1]`: should be a valid string"],
        ),
        ({"special_tokens": "<pad>"}, ["`special_tokens: <pad>`: should be a valid dictionary"]),
        ({"attn_implementation": "foo"}, ["`attn_implementation: foo`: ", "'sdpa'"]),
        ({"adapter": "lorra"}, ["`adapter: lorra`: ", "Did you mean 'lora'?"]),
        ({"adapter": "qlora"}, ["`adapter: qlora`: Require cfg.load_in_4bit to be True"]),
        ({"base_model": None}, ["`base_model` is missing"]),
        ({"base_model": 5}, ["`base_model: 5`: must be text"]),
        ({"base_model": "no/where/at/all"}, ["`base_model: no/where/at/all`: is no folder here"]),
        ({"output_dir": 5}, ["`output_dir: 5`: must be text"]),
        ({"rl": ["aot"]}, ["`rl: ['aot']`: must be text"]),
        ({"rl": "grpo"}, ["`rl: grpo`: ", "aot, aot_unpaired, dpo"]),
        ({"rl": None}, ["`rl: None`: ", "aot, aot_unpaired, dpo"]),
        ({"plugins": "axolotl_aot.AOTPlugin"}, ["`plugins: axolotl_aot.AOTPlugin`: must be a list"]),
        ({"plugins": []}, ["`rl: aot` needs `plugins: [axolotl_aot.AOTPlugin]`"]),
        ({"datasets": 5}, ["`datasets: 5`: must be a list of entries"]),
        ({"datasets": [5]}, ["datasets[0]: expected a mapping with `path` and `type`, found 5"]),
        ({"test_datasets": 5}, ["`test_datasets: 5`: must be a list of entries"]),
        ({"learning_rat": 1}, ["`learning_rat` is not a key of axolotl", "Did you mean 'learning_rate'?"]),
        ({"aot_penalty": "hinge"}, ["`aot_penalty: hinge`: ", "'squared_hinge'"]),
        (
            {"adapter": "lorra", "micro_batch_size": "many", "weight_decay": "little"},
            ["`adapter: lorra`: ", "`micro_batch_size: many`: ", "`weight_decay: little`: "],
        ),
        # a type that is translated: its own name is not among what is wrong
        ({"rl": "dpo", "plugins": None, "seed": 1.5}, ["`seed: 1.5`: should be a valid integer"]),
    ],
    ids=str,
)
def test_key_value_and_remedy(changes, told, refused, paired_config):
    config = {key: value for key, value in {**paired_config, **changes}.items() if value is not None}
    found = refused(config)
    for part in told:
        assert part in found
    assert "pydantic" not in found and "errors.pydantic.dev" not in found
    if changes.get("rl", "aot") == "aot":
        assert "`rl: aot`: " not in found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "run.yml is empty: it must be the YAML of a training run"),
        (b"# nothing\n", "run.yml is empty"),
        (b"- rl: aot\n", "run.yml holds a list, and no keys"),
        (b"just words\n", "run.yml holds a str, and no keys"),
        (b"rl: aot\nlora_r: [1, 2\nseed: 1\n", "run.yml, line 3, column 5, is not YAML: "),
        (b"rl: aot\n\tseed: 1\n", "run.yml, line 2, column 1, is not YAML: "),
        (b"rl: !!python/object:os.system {}\n", "run.yml, line 1, column 5, is not YAML: "),
        (b"rl: \xff\xfe\n", "run.yml is not YAML, which is text in UTF-8: "),
        (b"rl: a\x00b\n", "run.yml is not YAML: unacceptable character #x0000"),
    ],
    ids=range(9),
)
def test_what_is_no_yaml_of_a_run(text, told, refused):
    assert told in refused(text)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_not_there(command, tmp_path):
    from axolotl_aot import cli

    result = CliRunner().invoke(getattr(cli, command), [str(tmp_path / "no.yml"), *COMMANDS[command]])
    assert result.exit_code == 2
    assert f"'{tmp_path / 'no.yml'}' does not exist" in " ".join(result.output.split())

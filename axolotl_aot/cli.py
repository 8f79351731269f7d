"""The commands that this package adds to `axolotl`.

Click only at the top: `axolotl --help` imports this module, so the heavy parts are imported inside the
functions.
"""

import re
from pathlib import Path
from typing import Any

import click


@click.command("aot-quickstart")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--rates",
    is_flag=True,
    help="Write nothing; print how often the base model and the trained ones answer right.",
)
def quickstart(directory: Path, rates: bool) -> None:
    """Write into DIRECTORY what a first try of AOT needs: a small model, data and YAMLs.

    Nothing is downloaded and no GPU is needed; it takes about a minute. Then run `axolotl train
    DIRECTORY/aot.yml`, and `axolotl aot-quickstart DIRECTORY --rates` to see what training did.
    """
    (_print_rates if rates else _write)(directory)


def _write(directory: Path) -> None:
    from rich.progress import track

    from axolotl_aot.quickstart.files import ROUNDS_NAME, write_quickstart

    try:
        yamls = write_quickstart(directory, progress=lambda steps: track(steps, "Training the base model"))
    except FileExistsError as error:
        raise click.ClickException(str(error)) from None
    click.echo("Ready. Next:")
    for path in yamls:
        click.echo(f"  axolotl train {path}")
    click.echo(f"  axolotl aot-quickstart {directory} --rates")
    click.echo(f"  sh {directory / ROUNDS_NAME}    # two rounds on the model's own answers")


def _print_rates(directory: Path) -> None:
    from axolotl_aot.quickstart.files import measure_rates
    from axolotl_aot.quickstart.task import KINDS

    try:
        rates = measure_rates(directory)
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from None
    click.echo("Answers sampled on held-out prompts:")
    click.echo(f"{'':14}" + "".join(f"{kind:>11}" for kind in KINDS))
    for name, row in rates.items():
        click.echo(f"{name:14}" + "".join(f"{row[kind]:>11.1%}" for kind in KINDS))
    reports = [folder / "report.html" for folder in sorted(directory.glob("outputs/*/dominance"))]
    if reports:
        click.echo("Dominance reports, to open in a browser:")
        for path in filter(Path.is_file, reports):
            click.echo(f"  {path}")


@click.command("aot-report")
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What CONFIG has trained, an adapter or a whole model; by default what is in its output_dir. Where "
    "that holds neither and the type is one of AOT's, what is in its lora_model_dir.",
)
@click.option(
    "--compare",
    "others",
    multiple=True,
    metavar="NAME=DIR",
    callback=lambda context, option, values: _named_folders(values),
    help="Another adapter or model to compare it with; may be given several times.",
)
@click.option("--data", help="A data set in place of CONFIG's evaluation set, with the same kind of rows.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write into; by default the folder aot-report in CONFIG's output_dir.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    help="How many evaluation prompts each model answers greedily, to be shown beside the base model's "
    "answers; 0 for none. By default CONFIG's aot_report_samples, or 8.",
)
def report(
    config: Path,
    adapter: Path | None,
    others: dict[str, Path],
    data: str | None,
    out: Path | None,
    samples: int | None,
) -> None:
    """Score trained models on CONFIG's evaluation set, without training, and write a dominance report.

    CONFIG is the YAML of a run of type aot, aot_unpaired, dpo, ipo, simpo or kto. The base model and each
    trained one make one pass over the data.
    """
    from axolotl_aot.errors import AOTConfigError, AOTDataError
    from axolotl_aot.report.comparison import make_report

    try:
        page = make_report(config, adapter=adapter, others=others, data=data, out=out, answers=samples)
    except (AOTConfigError, AOTDataError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"Dominance report: {page}")


FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("aot-sample")
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--prompts",
    required=True,
    help="A file, a folder or a data set of the hub, with rows of prompts, or rows as CONFIG's first entry "
    "of `datasets` reads them.",
)
@click.option("--out", required=True, type=FILE, help="The file to write, as JSON Lines.")
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What CONFIG has trained, an adapter or a whole model; by default as aot-report finds it.",
)
@click.option("--base", is_flag=True, help="Sample from the untrained base_model.")
@click.option("--n", type=click.IntRange(min=1), default=4, show_default=True, help="Answers to each prompt.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="1 is the distribution that is trained; 0 takes the likeliest token each time.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw from the fewest tokens whose probabilities sum to this.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="The most tokens of an answer; by default what sequence_len leaves.",
)
@click.option("--seed", type=int, default=42, show_default=True, help="Of the draws.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Sequences to generate at once; by default CONFIG's eval_batch_size or micro_batch_size, and on a "
    "GPU at least 64.",
)
@click.option(
    "--reward",
    metavar="MODULE:FUNCTION",
    help="Scores the answers: package.module:function or path/to/file.py:function, called with a prompt's "
    "messages (or its text) and a list of answers; returns a list of numbers.",
)
@click.option(
    "--reward-model",
    metavar="PATH",
    help="Scores the answers: a sequence-classification model with one label.",
)
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="What generates the answers; vllm needs axolotl's extra of that name, and a GPU.",
)
@click.option("--overwrite", is_flag=True, help="Start over, and replace what --out holds.")
def sample(config: Path, prompts: str, out: Path, **options: Any) -> None:
    """Sample answers from what CONFIG has trained, score them, and write them for `type: ranked`.

    CONFIG is the YAML of a run of type aot, aot_unpaired, dpo, ipo, simpo or kto. A command that was stopped
    goes on where it was, and gives the same file as one that was not.
    """
    from axolotl_aot.errors import AOTConfigError, AOTDataError
    from axolotl_aot.generation.sampling import sample as run
    from axolotl_aot.generation.settings import Settings

    try:
        result = run(config, prompts, out, Settings(**options))
    except (AOTConfigError, AOTDataError) as error:
        raise click.ClickException(str(error)) from None
    for line in result.said:
        click.echo(line)
    click.echo(f"Answers: {out}")
    if options["reward"] or options["reward_model"]:
        entry = ", ".join(f"{key}: {value}" for key, value in result.entry.items())
        click.echo(f"To train on them: `datasets: [{{{entry}}}]`")


def _named_folders(values: tuple[str, ...]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not (name and equals and folder):
            raise click.BadParameter(f"{value!r} must be NAME=DIR, such as dpo=outputs/dpo")
        if not re.fullmatch(r"[A-Za-z0-9][\w .+-]*", name):
            raise click.BadParameter(
                f"{name!r} must begin with a letter or digit and hold letters, digits and _ . + - only"
            )
        if name in folders:
            raise click.BadParameter(f"{name!r} is named twice")
        folders[name] = Path(folder)
    return folders

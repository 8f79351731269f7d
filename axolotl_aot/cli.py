"""The commands that this package adds to `axolotl`.

Click only at the top: `axolotl --help` imports this module, so the heavy parts are imported inside the
functions.
"""

from pathlib import Path

import click


@click.command("aot-quickstart")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--rates",
    is_flag=True,
    help="Instead, print how often the base model and the trained ones answer right.",
)
def quickstart(directory: Path, rates: bool) -> None:
    """Write a small model, data and YAMLs to try AOT on, into DIRECTORY.

    Nothing is downloaded and no GPU is needed; it takes about a minute. Then `axolotl train
    DIRECTORY/aot.yml`, and `axolotl aot-quickstart DIRECTORY --rates` to see what it did.
    """
    (_print_rates if rates else _write)(directory)


def _write(directory: Path) -> None:
    from rich.progress import track

    from axolotl_aot.quickstart import write_quickstart

    try:
        yamls = write_quickstart(directory, progress=lambda steps: track(steps, "Training the base model"))
    except FileExistsError as error:
        raise click.ClickException(str(error)) from None
    click.echo("Ready. Next:")
    for path in yamls:
        click.echo(f"  axolotl train {path}")
    click.echo(f"  axolotl aot-quickstart {directory} --rates")


def _print_rates(directory: Path) -> None:
    from axolotl_aot.quickstart import KINDS, measure_rates

    try:
        rates = measure_rates(directory)
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from None
    click.echo("Answers sampled on held-out prompts:")
    click.echo(f"{'':14}" + "".join(f"{kind:>11}" for kind in KINDS))
    for name, row in rates.items():
        click.echo(f"{name:14}" + "".join(f"{row[kind]:>11.1%}" for kind in KINDS))

"""`kit completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from apps.cli import options

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@options.debug
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a SHELL complete kit's words: commands, options, bundles, variants, runtimes, data sets and files.

    \b
    Examples:
      echo 'eval "$(kit completion bash)"' >> ~/.bashrc
      echo 'eval "$(kit completion zsh)"' >> ~/.zshrc     after compinit
      kit completion fish > ~/.config/fish/completions/kit.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click knows the three
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "kit", "_KIT_COMPLETE").source())

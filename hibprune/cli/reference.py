"""Commands that print what there is: the schema of recipes, the attribution methods."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--markdown", is_flag=True, help="Print the reference for people instead.")
def schema(markdown: bool) -> None:
    """Print the JSON schema of recipes."""
    if markdown:
        from hibprune.recipe.reference import reference_markdown

        click.echo(reference_markdown(), nl=False)
        return

    from hibprune.recipe import Recipe

    click.echo(json.dumps(Recipe.model_json_schema(), indent=1))


@click.command()
def methods() -> None:
    """List the attribution methods: what they do, where they come from, what they cost."""
    from hibprune.attribution import METHODS

    width = max(len(method.name()) for method in METHODS)
    for method in METHODS:
        click.echo(f"{method.name():<{width}}  {method.title}")
        click.echo(f"{'':<{width}}  source: {method.source}")
        click.echo(f"{'':<{width}}  cost:   {method.cost}")

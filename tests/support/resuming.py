"""Generates the page of what may change in a run: `python -m tests.support.resuming > examples/RESUMING.md`."""

import sys
import textwrap

from aecli.configs.train import train_options

HEAD = """# Resuming a run

Generated from the program. The same `aecli train` command again resumes its run: the last one under `--runs` with the
same options and images, or the one in `--out`. These options may differ then:

| option | may change |
|---|---|
"""
REST = """
All others make the run what it is, as the model's own options do:
{others}.

A command in which one of these differs begins another run, and is refused where `--out` names this one. To train on
with another rate, β or batch size, begin that run from the trained weights: `--init RUN`. It takes the model's options
and the image size from them, unless you name them; it is a run like any other, and needs the weights only to begin.

A run knows its images by their names and sizes (`images.csv`), not by their place:

- Moved, renamed, zipped or unzipped, they are the same images, under the same command with another `--data`.
- Where some were added, taken away or changed in size, the run goes on with what is there now, at the old place or
  where that is gone, and says what has changed. The epoch that was interrupted begins again.
- Where most are others, it is another data set, and refused unless you add `--allow-changed-data`.
- `config.json` keeps each change under `changes`.
"""


def page() -> str:
    """The page, in Markdown."""
    options = train_options()
    rows = [f"| `{each.flag}` | {each.option.may_change} |\n" for each in options if each.option.may_change]
    others = ", ".join(f"`{each.flag}`" for each in options if not each.option.may_change)
    return HEAD + "".join(rows) + REST.format(others="\n".join(textwrap.wrap(others, 118, break_on_hyphens=False)))


if __name__ == "__main__":
    sys.stdout.write(page())

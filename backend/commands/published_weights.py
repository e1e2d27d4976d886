# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `weights`: list, fetch, verify and convert what other people have published."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from backend.console import progress_bar
from backend.models.checkpoints import CARD, DOWNLOADS, weights_folder
from backend.models.weights_registry import Weights, find, registry
from backend.progress import Run, UserError

COMMERCIAL = {"yes": "commercial use: yes", "no": "NO commercial use", "unclear": "commercial use: unclear"}


def list_weights(options: argparse.Namespace) -> int:
    """Show all published weights: what they are, which licence they have, what is on this computer."""
    folder = weights_folder(options.dir)
    for weights in registry().values():
        print(f"{weights.name:<18}{size_text(weights):>10}  {state(weights, folder)}")
        print(f"    {weights.title}")
        print(f"    for {', '.join(weights.needed_by)}; {weights.licence}; {COMMERCIAL[weights.commercial]}")
        if options.details:
            print_details(weights)
    print(f"\nIn {folder}")
    return 0


def print_details(weights: Weights) -> None:
    """Sources, files and notes of one set of weights."""
    for source in weights.sources:
        print(f"    from {source.repository}, revision {source.revision}")
    if weights.page:
        print(f"    by hand from {weights.page}")
    for file in weights.files:
        print(f"    {file.path}: sha256 {file.sha256 or 'not known: not verified'}")
    if weights.note:
        print(f"    {weights.note}")
    print(f"    licence: {weights.licence_page}")


def fetch_weights(options: argparse.Namespace) -> int:
    """Download weights, all of the named ones."""
    from backend.models.weights_fetch import fetch

    wanted = [find(name) for name in options.names]
    folder = weights_folder(options.dir)
    for weights in wanted:
        print(f"{weights.name}: {size_text(weights)}; {weights.licence}; {COMMERCIAL[weights.commercial]}")
        with shown(folder) as run:
            made = fetch(
                weights,
                folder,
                run,
                accept_licence=options.accept_licence,
                source=options.source,
                half=options.half,
                keep_download=options.keep_download,
            )
        print(f"{weights.name} is in {made}")
    return 0


def convert_weights(options: argparse.Namespace) -> int:
    """Convert a file that was downloaded by hand."""
    from backend.models.weights_convert import convert_file

    folder = weights_folder(options.dir)
    with shown(folder) as run:
        made = convert_file(options.file, folder, run, name=options.name, half=options.half, replace=options.replace)
    for path in made:
        weights = find(path.name)
        print(f"{path.name} is in {path}; {weights.licence}; {COMMERCIAL[weights.commercial]}")
    return 0


def verify_weights(options: argparse.Namespace) -> int:
    """Check the named weights, or all that are here; 1 if any is not good."""
    from backend.models.weights_verify import verify

    folder = weights_folder(options.dir)
    names = options.names or [name for name in registry() if (folder / name / CARD).is_file()]
    if not names:
        print(f"There are no weights in {folder}.")
        return 0
    bad = 0
    for weights in [find(name) for name in names]:
        try:
            with shown(folder) as run:
                run.plan({f"Checking {weights.name}": 1})
                run.begin(f"Checking {weights.name}")
                verdict = verify(weights, folder, run)
        except UserError as error:
            bad += 1
            print(f"{weights.name}: {error} {error.hint}", file=sys.stderr)
            continue
        bad += bool(verdict.problems)
        print(
            f"{weights.name}: {'NOT GOOD' if verdict.problems else 'good'}; {verdict.tensors or 'no'} tensors compared"
        )
        for line in (*verdict.problems, *verdict.notes):
            print(f"    {line}")
    return 1 if bad else 0


def state(weights: Weights, folder: Path) -> str:
    """What is on this computer."""
    if (folder / weights.name / CARD).is_file():
        return "here"
    if any((folder / DOWNLOADS / weights.name).glob("**/*")):
        return "partly downloaded"
    return "" if weights.sources else "to be downloaded by hand"


def size_text(weights: Weights) -> str:
    """`3.9 GB`, or a question mark."""
    if weights.size is None:
        return "? GB"
    return f"{weights.size / 1e9:.1f} GB" if weights.size >= 5e7 else f"{weights.size / 1e6:.1f} MB"


@contextlib.contextmanager
def shown(folder: Path) -> Iterator[Run]:
    """A run with a progress bar."""
    with progress_bar() as show:
        yield Run(folder, on_progress=show)

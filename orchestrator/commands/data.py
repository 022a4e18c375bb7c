"""``mpq data pack``: an image folder becomes Parquet shards that training reads image by image."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click


@click.group()
def command() -> None:
    """Prepare images for training."""


@command.command()
@click.argument("imagefolder", type=click.Path(exists=True, file_okay=False))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--seed", default=0, show_default=True, help="Of the shuffle.")
@click.option(
    "--images-per-shard", type=click.IntRange(1), default=2048, show_default=True,
    help="2048 ImageNet images are 225 MB.",
)  # fmt: skip
@click.option("--eval-split", help="Where there are two; default: the one of val and test.")
@click.option(
    "--skip-bad", "max_bad", type=click.IntRange(0), default=0, show_default=True,
    help="Leave out up to so many broken images; each is listed.",
)  # fmt: skip
@click.option(
    "--no-check", is_flag=True, help="Do not decode the images to prove that they can be."
)
@click.option("--threads", type=click.IntRange(1), help="Default: one a core.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pack(
    imagefolder: str,
    out: str,
    seed: int,
    images_per_shard: int,
    eval_split: str | None,
    max_bad: int,
    no_check: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Pack IMAGEFOLDER (train/<class>/*, val/<class>/*) into shards below OUT.

    Every shard is read back and compared. After an interruption the same command goes on. Train on
    the result with data: {name: imagenet_parquet, path: OUT}.
    """
    from trainers.data.pack import PackSettings, pack_folder

    bars: dict[str, Any] = {}

    def tell(split: str, done: int, total: int) -> None:
        if as_json:
            return
        if split not in bars:
            bars[split] = click.progressbar(length=total, label=f"packing {split}")
        bars[split].update(done - bars[split].pos)
        if done == total:
            bars[split].render_finish()

    packed = pack_folder(
        imagefolder,
        Path(out),
        PackSettings(
            seed=seed,
            images_per_shard=images_per_shard,
            check_images=not no_check,
            max_bad_samples=max_bad,
        ),
        num_threads=threads or len(os.sched_getaffinity(0)),
        eval_split=eval_split,
        tell=tell,
    )
    if as_json:
        facts = {
            "folder": out,
            "images": packed.num_images,
            "shards": packed.num_shards,
            "kept_shards": packed.num_kept,
            "skipped": packed.skipped,
        }
        click.echo(json.dumps(facts, indent=1))
        return
    for split, count in packed.num_images.items():
        click.echo(f"{split}: {count} images in {packed.num_shards[split]} shards")
    if packed.num_kept:
        click.echo(f"{packed.num_kept} shards were there already and are whole")
    for line in packed.skipped:
        click.echo(f"left out: {line}")

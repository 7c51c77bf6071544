"""`unimodal-ar merge`: a model with layers of PEFT (LoRA, say) into one without, that stands alone."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "merge",
        help="merge a model's PEFT layers into its backbone",
        description="Merge a trained model's PEFT layers (such as LoRA) into its backbone. The new model computes the "
        "same and needs neither PEFT nor the original backbone.",
    )
    command.add_argument("folder", metavar="FOLDER", help="a folder that training with a recipe's section `peft` wrote")
    command.add_argument("--out", required=True, metavar="DIR", help="where to write the model")
    command.add_argument("--overwrite", action="store_true", help="replace a model that is already in DIR")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from .. import lora
    from ..adapters.base import CONFIG_NAME, load_adapters
    from ..card import check_card, write_card
    from ..places import no_model
    from ..saving import check_output, load_model, write_whole

    folder, out = Path(arguments.folder), Path(arguments.out)
    if not (folder / "config.json").is_file():
        raise ValueError(f"FOLDER is {arguments.folder!r}, which {no_model(folder)}")
    if out.resolve() == folder.resolve():
        raise ValueError(f"--out is {arguments.out!r}, the folder of the model itself; choose another")
    if not (folder / lora.CONFIG).is_file():
        raise ValueError(f"FOLDER is {arguments.folder!r}, which holds no {lora.CONFIG}; there is nothing to merge")
    logging.disable_progress_bar()
    check_card(out, "--out")
    adapters = list(load_adapters(folder).values()) if (folder / CONFIG_NAME).exists() else []
    check_output(
        out,
        "--out",
        arguments.overwrite,
        read={"FOLDER": arguments.folder},
        folders=[name for adapter in adapters for name in adapter.folders],
    )
    model = load_model(folder, "cpu")
    lora.merge(model)

    def write(partial: Path) -> None:
        model.save_pretrained(partial, include_backbone=True)
        for adapter in adapters:
            adapter.save_pretrained(partial)
        if (folder / "recipe.yaml").is_file():  # which says what its columns are, say
            shutil.copy(folder / "recipe.yaml", partial)
        write_card(partial, arguments.out)

    out.mkdir(parents=True, exist_ok=True)
    write_whole(out, write, replace=True)
    print(f"Wrote {out}")

"""One training on images from the command line, in one process or in several that share each batch.

    python -m kolmo.images --placement output --rate 0.2 --out runs/images
    torchrun --nproc-per-node 2 -m kolmo.images --config cifar.toml --out runs/cifar

The folder keeps `network.npz`, the training's state while it goes on and the network in the end, so that the
same command goes on after any interrupt; and `results.json`. Exit codes as of `kolmo`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from kolmo import config, threads
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.device import resolve as resolve_device
from kolmo.errors import EXIT_ERROR, EXIT_INTERRUPTED, KolmoError
from kolmo.files import output_folder, sweep, write_json
from kolmo.images import parallel
from kolmo.images.training import Epoch, refuse_other, train_once, weights_of
from kolmo.text import one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, write; every expected failure is one line on standard error and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        with parallel.joined(resolve_device(options.device)) as device:
            _train(options, device)
    except KolmoError as error:  # all processes meet it, the first one says it
        if os.environ.get("RANK", "0") == "0":
            print(f"kolmo: {one_line(error)}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(f"kolmo: interrupted; the same command goes on in {options.out}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kolmo.images", description="Train a network on images.")
    parser.add_argument("--config", default="image_dropout", help="TOML file with [images], or a shipped one")
    parser.add_argument("--placement", default="none", help="of the noise (default none)")
    parser.add_argument("--rate", type=float, default=0.0, help="1 - p (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, shifts and noise")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", required=True, help="folder, made where it does not exist")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _train(options: argparse.Namespace, device: str) -> None:
    settings = config.load(options.config).images
    plan, schedule = settings.plan(options.placement, options.rate), settings.schedule()
    data = settings.load(options.seed)
    torch.set_num_threads(threads.count())
    first = parallel.number() == 0
    folder = Path(options.out)
    if first:
        sweep(output_folder(folder, overwrite=True))
    memo = Memo(folder if first else None)  # the others get its state from the first

    def tell(epoch: Epoch) -> None:
        if first and not options.quiet:
            at = f"epoch {epoch.number} of {schedule.epochs}"
            print(f"{plan}: {at}: loss {epoch.loss:.4f}, {epoch.seconds:.0f} s", file=sys.stderr, flush=True)

    def compute(checkpoint: Checkpoint) -> State:
        network, outcome = train_once(
            plan, data, schedule, seed=options.seed, device=device, callback=tell, checkpoint=checkpoint
        )
        return {
            "network": plan.as_dict(),
            "weights": weights_of(network),
            "outcome": {
                **asdict(outcome),
                "seconds": {"total": outcome.seconds},
            },
        }

    if not parallel.agreed(memo.finished > 0) or first:
        found = memo.remember("network", compute)
    if not first:
        return
    refuse_other(found, plan)
    outcome = found["outcome"]
    content = {
        "network": plan.as_dict(),
        "schedule": asdict(schedule),
        "data": data.name,
        "seed": options.seed,
        "processes": parallel.count(),
        **outcome,
    }
    write_json(folder / "results.json", content)
    print(f"{plan}: test error {outcome['test']['error']:.2%}, {outcome['seconds']['total']:.0f} s")


if __name__ == "__main__":
    sys.exit(main())

"""Check that a recipe's training data are the same bits on any number of ranks, under torchrun.

Each rank hashes its samples, number, label and pixels; the hashes of a step, in the order of the global batch, make the
step's digest, and those of all steps the stream's. The last row changes the number of ranks half way.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lsdali.bench.machine import hardware
from lsdali.errors import UserError

Digests = list[list[str]]  # of each step, of each sample of a rank


def stream(options: argparse.Namespace) -> None:
    """Hash the first steps of a recipe's training data on several numbers of ranks, and compare."""
    half = options.steps // 2
    rows = {
        f"{world} rank{'s' * (world > 1)}": read_streams(options, world, 0, options.steps) for world in options.worlds
    }
    first, last = options.worlds[0], options.worlds[-1]
    changed = read_streams(options, first, 0, half) + read_streams(options, last, half, options.steps)
    rows[f"{first}, from step {half} on {last} ranks"] = changed
    print(hardware(f"{options.steps} steps of {options.recipe} {' '.join(options.overrides)}".rstrip()))
    print(f"\n{'ranks':30}{'samples':>10}  digest of the stream")
    for name, steps in rows.items():
        whole = hashlib.sha256("".join(digest for step in steps for digest in step).encode()).hexdigest()
        print(f"{name:30}{sum(map(len, steps)):>10}  {whole[:32]}")
    if any(steps != changed for steps in rows.values()):
        raise UserError("the streams differ")


def read_streams(options: argparse.Namespace, world: int, start: int, stop: int) -> Digests:
    """Return the digests of all samples of each step, in the order of the global batch."""
    with tempfile.TemporaryDirectory() as folder:
        alone = ["--standalone", "--local-addr", "127.0.0.1"]  # the node's name may lead nowhere
        launch = [sys.executable, "-m", "torch.distributed.run", *alone, "--nproc_per_node", str(world)]
        part = ["-m", "lsdali.bench", "stream-part", folder, str(start), str(stop)]
        command = [*launch, *part, options.recipe, *options.overrides]
        done = subprocess.run(command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", **os.environ})
        if done.returncode:
            raise UserError(f"{world} ranks failed: {done.stderr.strip()}")
        parts: list[Digests] = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    return [[digest for part in step for digest in part] for step in zip(*parts, strict=True)]


def stream_part(options: argparse.Namespace) -> None:
    """Write the digests of what one rank reads; what `stream` starts."""
    from lsdali import dist
    from lsdali.data.pipeline.loaders import open_dataset, train_loader
    from lsdali.data.pipeline.options import LoaderOptions
    from lsdali.recipe import load

    recipe = load(options.recipe, options.overrides)
    digests: Digests = []
    with dist.session() as device:
        index = open_dataset(recipe.data, "train", lambda line: None)
        loading = LoaderOptions(recipe.batches, recipe.seed, device, sampler=recipe.sampler)
        loader = train_loader(index, recipe.data, loading)
        while options.start + len(digests) < options.stop:
            for batch in loader.epoch(options.start + len(digests)):
                rows = zip(batch.index.tolist(), batch.labels.tolist(), batch.images.cpu().numpy(), strict=True)
                digests.append([hashlib.sha256(f"{i} {y} ".encode() + x.tobytes()).hexdigest() for i, y, x in rows])
                if options.start + len(digests) == options.stop:
                    break
        rank = dist.rank()
        loader.close()
    (Path(options.folder) / f"{rank}.json").write_text(json.dumps(digests))

"""Train the pretexts that come with the package: python book/pretexts.py digits --seeds 5

SimCLR with the recipe of the set and seeds 0 to N-1, one file each in dcl/weights/pretexts; what is
there already, with today's recipe, is left alone. Methods that begin with a pretext take it from
there in their chapters (`dcl.app.pretexts.stored`), so that they differ in nothing else.
"""

import argparse
import json
import sys
from dataclasses import replace

from dcl.app.monitors import Log
from dcl.app.pretexts import PRETEXTS, save, stored
from dcl.data import load
from dcl.methods import simclr
from dcl.recipes import recipe
from dcl.runtime.versions import machine, versions


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a set that has a recipe of SimCLR, such as digits")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args(arguments)
    images = load(asked.data).images
    PRETEXTS.mkdir(exist_ok=True)
    for seed in range(asked.seeds):
        config = replace(recipe("simclr", asked.data), seed=seed)
        path = PRETEXTS / f"simclr-{asked.data}-seed{seed}.safetensors"
        if path.exists() and stored(images, config):
            continue
        pretext = simclr.fit(images, config, monitor=Log(every=5))
        about = {"command": f"python book/pretexts.py {asked.data} --seeds {asked.seeds}"}
        about |= {"machine": json.dumps(machine("cpu")), "versions": json.dumps(versions())}
        save(pretext, images, path, **about)
        print(f"wrote {path.name}, {path.stat().st_size / 1024:.0f} KiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

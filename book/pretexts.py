"""Train the pretexts that come with the package: python book/pretexts.py digits --seeds 5

SimCLR as the chapters' profile quick has it, on 10,000 images at most, with seeds 0 to N-1; one
file each in dcl/weights/pretexts. What is there already, with today's recipe, is left alone. A
method that begins with a pretext takes it from there in its chapter (`dcl.app.pretexts.stored`), so
that several differ in nothing else.
"""

import argparse
import json
import sys
from dataclasses import replace

from dcl.app.monitors import Log
from dcl.app.pretexts import PRETEXTS, save, stored
from dcl.data import load
from dcl.methods import simclr
from dcl.recipes import choose, recipe
from dcl.runtime.versions import machine, versions


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="the name of a set, such as digits")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args(arguments)
    data = load(asked.data)
    images = data.subset(min(len(data), 10_000)).images
    plan = recipe("simclr", choose("simclr", asked.data, "quick", gray=data.channels == 1))
    PRETEXTS.mkdir(exist_ok=True)
    for seed in range(asked.seeds):
        config = replace(plan, seed=seed)
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

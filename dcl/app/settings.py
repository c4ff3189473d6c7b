"""What a run folder says of its run: method, settings, and where its images are."""

import json
import os
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dcl import methods
from dcl.app import contents
from dcl.app.source import Source
from dcl.config import unflat
from dcl.data import Data
from dcl.data.files import named
from dcl.runtime import checkpoint, dist
from dcl.runtime.files import write_atomic


@dataclass(frozen=True)
class Settings:
    """What `config.json` says."""

    method: str
    config: Any
    network: str
    """The fingerprint of an encoder from elsewhere; empty: the method's own."""
    checksum: str
    source: Source
    encoder: str
    """The name of a pretrained encoder."""
    device: str

    def load(self) -> Data:
        """The images of the run. Raises ValueError when it was started from Python."""
        if not self.source.data or (self.network and not self.encoder):
            raise ValueError(
                "data and encoder must be known by name, and this run was started from Python: to "
                "resume or complete it, call dcl.app.run.fit with the same arguments"
            )
        return self.source.load(tell=None)  # `fit` has said it


def settings(out: str | Path) -> Settings:
    """The settings of the run in a folder. Raises FileNotFoundError, ValueError when damaged."""
    path = named("run_dir", out) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{str(out)!r} must be a run folder; there is no {path}")
    try:
        kept = json.loads(path.read_bytes())
        flat, source = kept["config"], Source(**kept.get("source", {"data": ""}))
        name, checksum = flat["method"], kept["data"]["checksum"]
        inner = {k.removeprefix("config."): v for k, v in flat.items() if k.startswith("config.")}
        config = unflat(methods.method(name).Config, inner)
        encoder, device = kept.get("pretrained", ""), kept.get("device", "auto")
        return Settings(name, config, flat["encoder"], checksum, source, encoder, device)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or not a run's ({error})") from error


def command(name: str, out: str | Path) -> str:
    """A command on a run folder that can be copied into a shell in any folder."""
    return f"dcl {name} {shlex.quote(os.path.abspath(out))}"


def located(out: str | Path, data: str = "") -> tuple[Settings, Data]:
    """The settings of a run and its images, which are now at `data`, if that is not empty.

    Their new place is kept in the run folder. Raises ValueError that names what has changed when
    they are no longer those of the run; FileNotFoundError or ValueError when they are not there.
    """
    s = settings(out)
    if data:
        s = replace(s, source=replace(s.source, data=data).absolute())
    try:
        images = s.load()
    except (ValueError, FileNotFoundError) as error:
        if data or not s.source.data or Path(s.source.data).exists():
            raise
        done = "report" if (Path(out) / "model.safetensors").exists() else "resume"
        where = f"if they were moved, say where to: {command(done, out)} --data PLACE"
        raise type(error)(f"{error}; {where}") from error
    # others would overwrite the run's assignments
    if replace(images, labels=None).checksum != s.checksum:
        changes = contents.changes(Path(out) / "images.csv", images)
        text = f"data must be the {images.noun}s of the run; {s.source.data} has changed"
        raise ValueError("\n  ".join([text, *changes.splitlines()]))
    if data and dist.rank() == 0:
        with checkpoint.lock(out):
            path = Path(out) / "config.json"
            kept = {**json.loads(path.read_bytes()), "source": asdict(s.source)}
            write_atomic(path, json.dumps(kept, indent=1).encode())
    return s, images

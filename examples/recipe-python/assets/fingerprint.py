"""Gives each style and script a name that holds its hash, so that browsers may keep it for ever, and a packed copy.

    python3 fingerprint.py FROM TO

`names.json` says which name is which. Comments and indentation go."""

import gzip
import hashlib
import json
import re
import sys
from pathlib import Path

COMMENTS = {".css": re.compile(r"/\*.*?\*/", re.S), ".js": re.compile(r"^\s*//.*$", re.M)}


def smaller(path):
    text = COMMENTS[path.suffix].sub("", path.read_text())
    return "\n".join(line.strip() for line in text.splitlines() if line.strip()) + "\n"


source, target = map(Path, sys.argv[1:])
target.mkdir(parents=True, exist_ok=True)
names = {}
for path in sorted(source.iterdir()):
    if path.suffix not in COMMENTS:
        continue
    data = smaller(path).encode()
    name = f"{path.stem}.{hashlib.sha256(data).hexdigest()[:12]}{path.suffix}"
    (target / name).write_bytes(data)
    (target / f"{name}.gz").write_bytes(gzip.compress(data, mtime=0))
    names[path.name] = name
(target / "names.json").write_text(json.dumps(names, indent=1) + "\n")

"""What has to hold before anybody gets this version: `python3 -m notes.test`."""

import json
import tempfile
from pathlib import Path

from notes import LONGEST, MOST, create


def check(what, holds):
    if not holds:
        raise SystemExit(f"wrong: {what}")


with tempfile.TemporaryDirectory() as static:
    names = {"style.css": "style.0.css", "notes.js": "notes.0.js"}
    (Path(static) / "names.json").write_text(json.dumps(names))
    (Path(static) / "style.0.css").write_text("p { color: red }")
    client = create(static).test_client()

    check("a page without notes", b"Nothing yet" in client.get("/").data)
    check("a style that is there", client.get("/static/style.0.css").status_code == 200)
    check("its name on the page", b"/static/style.0.css" in client.get("/").data)
    for text, status in [("", 400), ("x" * (LONGEST + 1), 400), ("<b>first</b>", 303)]:
        check(f"{status} for {len(text)} characters", client.post("/", data={"text": text}).status_code == status)
    check("text and no markup", b"&lt;b&gt;first" in client.get("/").data)
    for number in range(MOST):
        client.post("/", data={"text": f"note {number}"})
    listed = client.get("/notes.json").json
    check("no more than there is room for", len(listed) == MOST and listed[0] == "note 0")
    check("nothing outside", client.get("/static/../names.json").status_code == 404)
    check("up", client.get("/up").data == b"up\n")

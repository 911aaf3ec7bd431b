"""Notes that live as long as the process: one page, and the same as JSON."""

import json
import os
from pathlib import Path

from flask import Flask, abort, jsonify, redirect, render_template, request, send_from_directory

MOST = 100
LONGEST = 500


def create(static=None):
    """The application. `static` is the directory that `assets/fingerprint.py` filled."""
    static = Path(static or os.environ.get("STATIC", "/static"))
    names = json.loads((static / "names.json").read_text())
    app = Flask(__name__, static_folder=None)
    notes = []

    @app.context_processor
    def assets():
        return {"asset": lambda name: f"/static/{names[name]}"}

    @app.get("/")
    def index():
        return render_template("index.html", notes=reversed(notes))

    @app.post("/")
    def add():
        text = request.form.get("text", "").strip()
        if not 0 < len(text) <= LONGEST:
            abort(400)
        notes.append(text)
        del notes[:-MOST]
        return redirect("/", code=303)

    @app.get("/notes.json")
    def listed():
        return jsonify(notes)

    @app.get("/static/<path:name>")
    def asset(name):
        return send_from_directory(static, name, max_age=31_536_000)

    @app.get("/up")
    def up():
        return "up\n"

    return app

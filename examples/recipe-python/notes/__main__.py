"""Serves it on `PORT`."""

import os

from werkzeug.serving import run_simple

from notes import create

run_simple("0.0.0.0", int(os.environ.get("PORT", "8080")), create(), threaded=True)

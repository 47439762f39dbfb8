"""The HTTP API: images in, masks out.

``make_app`` makes an application of a ``Predictor``; ``notan serve`` runs it.
"""

from __future__ import annotations

from notan.serve.app import make_app as make_app
from notan.serve.service import ServeSettings as ServeSettings

"""Lets these tests import their helpers (jupyter_process, samples, scripted_hub) by name; tests/browser uses them too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

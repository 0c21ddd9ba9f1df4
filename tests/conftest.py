"""Settings that every test runs under: no network, two threads, and `models` importable from any tests folder."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import torch

torch.set_num_threads(2)

"""Settings that every test runs under: no network, two threads, and `models` importable from any tests folder."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Two test processes share the cores: a thread that waits for its team must not spin. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent))

import torch

torch.set_num_threads(2)

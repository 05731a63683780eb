from pathlib import Path

import pytest

TINY = """
network: {host: resnet20, options: {width: 4}}
data: {name: digits, batch_size: 32, train_limit: 192}
search: {epochs: 2, warmup_epochs: 1, budget: 1.3}
pretrain: {epochs: 2}
finetune: {epochs: 2, ema: 0.9}
hardware: {accelerator: cpu, threads: 1}
checkpoint_minutes: 0
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A config whose whole run takes seconds, and which writes a checkpoint after every step."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path

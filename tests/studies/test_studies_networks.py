"""Rivals whose branches start with a gain: what it multiplies, and that 1 leaves the published network as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from claim_methods import BASE, METHODS

from nasb.networks.registry import create_host
from nasb.plugin import load_plugin

PLUGIN = str(Path(__file__).parents[2] / "studies" / "study_networks.py")
BRANCHES = {"study_bnn_resnet20": 9, "study_irnet_resnet20": 18, "study_reactnet_resnet20": 18,
            "study_xnor_resnet20": 9, "study_abcnet_resnet20": 9, "study_groupnet_resnet20": 54,
            "real_resnet20": 9}  # fmt: skip


@pytest.mark.parametrize("name", BRANCHES)
def test_a_gain_scales_the_end_of_each_branch_and_nothing_else(name: str) -> None:
    load_plugin(PLUGIN)

    def made(name: str, **options: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return create_host(name, options=options).state_dict()

    started, plain = made(name, branch_gain=0.25), made(name)
    changed = [key for key in plain if not torch.equal(started[key], plain[key])]
    assert len(changed) == BRANCHES[name]
    assert all(torch.equal(started[key], 0.25 * plain[key]) for key in changed)
    if name.startswith("study_"):
        published = made(name.removeprefix("study_"))
        assert all(torch.equal(plain[key], published[key]) for key in published)


def test_a_trial_sets_the_gain_of_every_method() -> None:
    for name, method in METHODS.items():
        flags = BASE | dict(method.flags) | method.settings(0.02, 0.1)
        assert flags["finetune.learning_rate"] == "0.02", name
        gains = [flags.get("cell.branch_gain") == "0.1000", "branch_gain: 0.1000}" in flags["network.options"]]
        assert sum(gains) == 1, name

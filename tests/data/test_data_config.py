import re
import subprocess
import sys
from typing import Any

import pytest

from nasb.data import DATASETS, DataConfig, dataset_names
from nasb.errors import UserError


def test_every_data_set_has_a_name_and_one_line() -> None:
    names = dataset_names()
    assert set(names) == {"digits", "folder", "cifar10", "cifar100", "fashion-mnist", "imagenet"}
    for name, line in names.items():
        assert line
        assert "\n" not in line
        DataConfig(name=name, root="somewhere")  # the defaults are accepted for every data set
        assert len(DATASETS[name].mean) == len(DATASETS[name].std) == DATASETS[name].channels


def test_config_and_names_need_no_torch() -> None:
    code = (
        "import sys; from nasb.data import DataConfig, dataset_names; DataConfig(); dataset_names();"
        "assert not {'torch', 'torchvision', 'sklearn', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve() -> None:
    import nasb.data

    for name in nasb.data.__all__:
        assert getattr(nasb.data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nasb.data.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "cifar"}, 'data.name: unknown data set "cifar"; known: cifar10'),
        ({"name": "folder"}, "data.root is missing: folder needs the folder that holds the data"),
        ({"name": "folder", "root": "x", "download": True}, "data.download does not work for folder; only for cifar10"),
        ({"in_memory": False}, "data.in_memory is False, but digits is always kept in memory"),
        ({"image_size": 0}, "data.image_size is 0; give an integer >= 1"),
        ({"batch_size": 0}, "data.batch_size is 0; give an integer >= 1"),
        ({"batch_size": 1.5}, "data.batch_size is 1.5; give an integer >= 1"),
        ({"batch_size": True}, "data.batch_size is True; give an integer >= 1"),
        ({"train_limit": 0}, "data.train_limit is 0; give an integer >= 1"),
        ({"workers": -1}, "data.workers is -1; give an integer >= 0"),
        ({"validation_fraction": 1.0}, "data.validation_fraction is 1.0; give a number >= 0 and below 1"),
        ({"validation_fraction": float("nan")}, "data.validation_fraction is nan; give a number >= 0 and below 1"),
        ({"augmentation": "autoaugment"}, "data.augmentation is 'autoaugment'; known: default, none"),
        ({"unreadable": "ignore"}, "data.unreadable is 'ignore'; known: error, skip"),
        ({"mean": (0.5, 0.5)}, "data.mean is (0.5, 0.5); digits needs a list of 1 finite number(s)"),
        ({"std": (float("inf"),)}, "data.std is (inf,); digits needs a list of 1 finite number(s)"),
        ({"std": (0.0,)}, "data.std is (0.0,); each standard deviation must be above 0"),
    ],
)
def test_refused_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        DataConfig(**values)


def test_lists_from_yaml_become_tuples() -> None:
    config: Any = DataConfig(mean=[1])  # type: ignore[arg-type]
    assert config.mean == (1.0,)

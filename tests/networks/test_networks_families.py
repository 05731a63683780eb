"""Hosts by name that nobody registered: torchvision/NAME, timm/NAME and factories."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import nasb
from nasb.cells.architecture import Architecture
from nasb.errors import UserError
from nasb.networks import create_host, families, list_networks, register_factory
from nasb.networks.registry import HOSTS, describe_network, host_defaults
from nasb.plugin import load_plugin

FACTORY = """
from torch import nn

def small(num_classes, width=8):
    '''A small CNN.'''
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(width, num_classes),
    )

def fixed():
    return small(5)

def none(num_classes):
    return num_classes

number = 3
"""


@pytest.fixture
def registered(monkeypatch):
    """What a test registers is gone after it."""
    create_host("resnet20")
    monkeypatch.setattr(HOSTS, "_entries", dict(HOSTS._entries))


@pytest.fixture
def file(tmp_path, registered):
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    return path


def test_a_network_of_torchvision_by_its_name():
    host = create_host("torchvision/squeezenet1_1", num_classes=4, in_channels=1)
    assert type(host).__name__ == "SqueezeNet"
    assert host.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 4)
    assert host_defaults("bireal_torchvision/squeezenet1_1") == ((3, 224, 224), 1000)
    assert (
        describe_network("nasb_torchvision/squeezenet1_1")
        == "squeezenet1_1 of torchvision; binary, searchable: what the search trains"
    )


def test_a_family_is_listed_if_asked():
    assert {"torchvision/resnet18", "torchvision/densenet121"} <= set(list_networks("torchvision/*"))
    assert list_networks("torchvision/resnet18") == ["torchvision/resnet18"]
    assert not any("/" in name for name in list_networks())


def test_options_reach_the_constructor_and_trained_weights_do_not_come_this_way():
    network = create_host("torchvision/mobilenet_v2", num_classes=4, options={"width_mult": 0.25})
    assert network.features[0][0].out_channels == 8
    with pytest.raises(UserError, match=r"torchvision/resnet18: weights is no option here; .* --init"):
        create_host("torchvision/resnet18", options={"weights": "DEFAULT"})
    with pytest.raises(UserError, match=r"torchvision/resnet18: cannot be built with .*wdth"):
        create_host("torchvision/resnet18", options={"wdth": 2})


def test_an_unknown_name_of_a_family():
    with pytest.raises(UserError, match=r'unknown torchvision model "densenet12".*closest: densenet1'):
        create_host("torchvision/densenet12")


def test_timm_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'timm/resnet18: needs the package timm; pip install "nasb\[timm\]"'):
        create_host("timm/resnet18")


def test_a_network_of_timm_by_its_name():
    pytest.importorskip("timm", reason='timm is not installed: pip install "nasb[timm]"')
    host = create_host("timm/resnet10t", num_classes=4, in_channels=1)
    assert host.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 4)
    assert "timm/resnet10t" in list_networks("timm/resnet1*")
    with pytest.raises(UserError, match='unknown timm model "resnet10"'):
        create_host("timm/resnet10")
    for key, value in {"pretrained": True, "checkpoint_path": "x.pth", "pretrained_cfg": {"file": "x.pth"}}.items():
        with pytest.raises(UserError, match=f"{key} is no option here"):
            create_host("timm/resnet10t", options={key: value})


def test_a_factory_of_a_file(file):
    name = f"{file}:small"
    register_factory(name)
    register_factory(name)  # it is there already
    network = nasb.create_network(f"bireal_{name}", num_classes=4, input_shape=(1, 16, 16), width=16)
    assert network(torch.randn(2, 1, 16, 16)).shape == (2, 4)
    assert describe_network(name) == "A small CNN"
    with pytest.raises(UserError, match='unknown option "wdth"; known: num_classes, width'):
        create_host(name, options={"wdth": 2})


def test_the_convolution_that_reads_the_images_is_made_anew_with_its_settings(tmp_path):
    (tmp_path / "late.py").write_text(
        """
from torch import nn

class Late(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Conv2d(16, num_classes, 1)
        self.stem = nn.Conv2d(3, 16, 3, padding=2, dilation=2, padding_mode="reflect", bias=False)

    def forward(self, x):
        return self.head(self.stem(x)).mean((2, 3))
"""
    )
    name = f"{tmp_path}/late.py:Late"
    register_factory(name)
    for channels in (3, 1):
        network = create_host(name, num_classes=4, in_channels=channels)
        assert network(torch.randn(1, channels, 16, 16)).shape == (1, 4)
        assert network.stem.dilation == (2, 2)
        assert network.stem.padding_mode == "reflect"
        assert network.stem.bias is None


def test_a_factory_of_a_package(registered):
    register_factory("torchvision.models:squeezenet1_1")
    assert type(create_host("torchvision.models:squeezenet1_1", num_classes=3)).__name__ == "SqueezeNet"


def test_a_module_of_the_working_directory(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    register_factory("mine:small")
    assert isinstance(create_host("mine:small", num_classes=3), nn.Sequential)


def test_an_architecture_does_not_run_code_that_it_names(file):
    register_factory(f"{file}:small")
    made = Architecture(host=f"{file}:small", num_classes=4, input_shape=(3, 16, 16), cells={"2": ()})
    text = made.dumps()
    del HOSTS._entries[f"{file}:small"]
    file.write_text("raise SystemExit('it was run')")
    with pytest.raises(
        UserError, match=r"mine.py:small: is a factory, whose code is run only where you name it: --plug"
    ):
        Architecture.from_dict(__import__("json").loads(text)).build()


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("{file}:smal", r'factory: .*mine.py: unknown function "smal"; known: .*(closest: small)'),
        ("{file}:number", "is a int, which cannot be called"),
        ("{file}x.py:small", "there is no such file"),
        ("no.such.module:small", "factory: no.such.module cannot be imported: ModuleNotFoundError"),
        (":small", "give package.module:function or file.py:function"),
    ],
)
def test_a_factory_that_cannot_be_had(file, reference, says):
    with pytest.raises(UserError, match=says):
        register_factory(reference.format(file=file))


def test_a_factory_that_makes_no_network(file):
    register_factory(f"{file}:none")
    with pytest.raises(UserError, match=r"mine.py:none: returns a int; it must return a torch.nn.Module"):
        create_host(f"{file}:none")


def test_keep_real_is_part_of_an_architecture():
    shape = (3, 16, 16)
    network = nasb.create_network("bireal_resnet20", input_shape=shape, width=4, keep_real=["layer1*"])
    names = network.meta["plan"].becoming("cell")
    assert not any(name.startswith("layer1") for name in names)
    cells = dict.fromkeys(names, ())
    made = Architecture(
        host="resnet20", options={"width": 4}, num_classes=10, input_shape=shape, cells=cells, keep_real=("layer1*",)
    )
    again = Architecture.from_dict(made.to_dict())
    assert again == made
    assert again.build().state_dict().keys() == network.state_dict().keys()
    assert "keep_real" not in Architecture(host="a", num_classes=1, input_shape=shape, cells={}).to_dict()


def test_keep_real_of_an_architecture_is_a_list_of_names():
    values = Architecture(host="resnet20", num_classes=1, input_shape=(3, 8, 8), cells={}).to_dict()
    for wrong in ("layer1", [1]):
        with pytest.raises(UserError, match=r"architecture: keep_real is .*; give a list of wildcards"):
            Architecture.from_dict({**values, "keep_real": wrong})


def test_keep_real_is_for_binary_networks():
    with pytest.raises(UserError, match="keep_real are options of binary networks; try bireal_resnet20"):
        nasb.create_network("resnet20", keep_real=["layer1*"])
    made = Architecture(host="resnet20", num_classes=10, input_shape=(3, 8, 8), cells={})
    with pytest.raises(UserError, match="nasb_resnet20: keep_real is in the architecture already"):
        nasb.create_network("nasb_resnet20", architecture=made, keep_real=["layer1*"])


def test_a_family_is_known_without_torch():
    code = "import nasb.networks.families, sys; assert 'torch' not in sys.modules"
    assert families.is_of_family("timm/resnet18")
    subprocess.run([sys.executable, "-c", code], check=True)


CNN_BESIDE = """
import nasb
from beside_KIND_first import WIDTH
from torch import nn

@nasb.register_host("beside KIND", input_shape=(3, 8, 8), num_classes=10)
def make(num_classes=10, in_channels=3):
    from beside_KIND_later import WIDTH  # while the network is made
    return nn.Sequential(nn.Conv2d(in_channels, WIDTH, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(WIDTH, num_classes))
"""


def test_a_file_may_import_what_lies_beside_it(tmp_path, monkeypatch):
    made = []
    for kind in ("factory", "plugin"):
        folder = tmp_path / kind
        folder.mkdir()
        for module in ("first", "later"):
            (folder / f"beside_{kind}_{module}.py").write_text("WIDTH = 4")
        (folder / "cnn.py").write_text(CNN_BESIDE.replace("KIND", kind))
        monkeypatch.setattr(sys, "path", list(sys.path))
        made.append(f"{folder}/cnn.py")
    register_factory(f"{made[0]}:make")
    assert create_host(f"{made[0]}:make", num_classes=3)[0].out_channels == 4
    load_plugin(made[1])
    assert create_host("beside plugin", num_classes=3)[0].out_channels == 4

"""Binary networks that others made by hand, each after its paper, one file each; importing registers them."""

from nasb.networks.rivals import abcnet, bnn, groupnet, irnet, quicknet, reactnet, xnornet  # noqa: F401 - each registers on import

"""Binary networks that others made by hand, each after its paper, one file each; importing registers them."""

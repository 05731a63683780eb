"""Hosts (plain real CNNs), convert(): host to binary or searchable network, and the registry of both."""

from nasb.networks.families import register_factory
from nasb.networks.registry import (
    HOSTS,
    build_architecture,
    create_host,
    create_network,
    describe_network,
    host_defaults,
    host_of,
    is_rival,
    list_networks,
    register_host,
)

__all__ = [
    "HOSTS",
    "build_architecture",
    "create_host",
    "create_network",
    "describe_network",
    "host_defaults",
    "host_of",
    "is_rival",
    "list_networks",
    "register_factory",
    "register_host",
]

"""From a traced network to the nodes of a graph, value by value."""

from dataclasses import dataclass, field

import torch
import torch.fx

from nasb.deploy import layers, operations  # noqa: F401 - they register what can be lowered
from nasb.deploy.graph import INPUT, OUTPUT, GraphBuilder
from nasb.deploy.step import Step
from nasb.deploy.tracing import Trace
from nasb.errors import UserError

CLONES = ("clone", torch.clone)


@dataclass
class Lowered:
    """What became of one value of the traced network."""

    node: torch.fx.Node
    reads: dict[torch.fx.Node, str]
    """The tensors of the file that it reads, by the value of the traced network for which they stand."""
    writes: str | None
    """The tensor of the file that it is; None where a batch norm behind it took it up."""
    made: tuple[str, ...] = ()
    """The nodes that were made for it, by name of their output."""


@dataclass
class Lowering:
    """Turns a traced network into nodes."""

    trace: Trace
    graph: GraphBuilder
    values: dict[torch.fx.Node, str] = field(default_factory=dict)
    """The tensor of the file that each value is at the moment."""
    memory: dict[torch.fx.Node, torch.fx.Node] = field(default_factory=dict)
    """In whose memory each value lies: what works in place there is seen by all of them."""
    steps: dict[torch.fx.Node, Lowered] = field(default_factory=dict)
    """What became of every value, in order."""
    folded: set[torch.fx.Node] = field(default_factory=set)
    """Batch norms that have been taken up by the layer before them."""
    classes: int = 0
    """How many outputs the network has."""

    def run(self) -> str:
        """Lower everything; return the name of the tensor that the network returns.

        Raises:
            UserError: a layer or operation that the file cannot hold, by name; a network that does not return one
                tensor [N, classes].
        """
        for node in self.trace.module.graph.nodes:
            if node.op == "placeholder" and node in self.trace.shapes:
                self.values[node], self.memory[node] = INPUT, node
            elif node.op == "output":
                return self._result(node.args[0])
            elif node in self.trace.shapes:
                self._lower(node)
        raise AssertionError("a traced graph ends in its output")

    def _lower(self, node: torch.fx.Node) -> None:
        reads = {parent: self.values[parent] for parent in node.all_input_nodes if parent in self.values}
        made: tuple[str, ...] = ()
        if node in self.folded:
            before = next(iter(reads))
            name = self.values[before]
            self.steps[before].writes = None
        else:
            module = self.trace.layer(node)
            step = Step(self.trace, self.graph, node, module, list(reads.values()), self.folded)
            count = len(self.graph.outputs)
            name = step.find()(step)
            if len(self.graph.outputs) > count and name == self.graph.outputs[-1]:
                name = self.graph.rename_last(step.name)
            made = tuple(self.graph.outputs[count:])
            if step.in_place:
                self._overwrite(next(iter(reads)), name)
        self.values[node] = name
        shared = next((parent for parent in reads if self.values[parent] == name), None)
        self.memory[node] = node if shared is None or node.target in CLONES else self.memory[shared]
        self.steps[node] = Lowered(node, reads, name, made)

    def _overwrite(self, overwritten: torch.fx.Node, after: str) -> None:
        """Let whoever reads an overwritten tensor from now on read what was written."""
        for node in self.values:
            if self.memory[node] is self.memory[overwritten]:
                self.values[node] = after

    def _result(self, result: object) -> str:
        if not isinstance(result, torch.fx.Node) or len(self.trace.shapes.get(result, ())) != 2:
            raise UserError("export: the network must return one tensor [N, classes]")
        name = self.values[result]
        if name == INPUT:
            raise UserError("export: the network returns its input")
        self.classes = self.trace.shapes[result][1]
        for step in self.steps.values():  # the graph calls its result so
            step.reads = {node: OUTPUT if read == name else read for node, read in step.reads.items()}
            step.writes = OUTPUT if step.writes == name else step.writes
            step.made = tuple(OUTPUT if made == name else made for made in step.made)
        return name

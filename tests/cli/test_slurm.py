"""docs/examples/imagenet.slurm is a shell script, and its command is one that nasb accepts."""

import re
import subprocess
from pathlib import Path

from nasb.cli.parsing import parse_run

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "imagenet.slurm"


def test_the_slurm_script_is_bash_and_its_command_is_read() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    text = SCRIPT.read_text()
    command = re.search(r"nasb run ((?:.*\\\n)*.*)", text)
    assert command is not None
    values = {'"$DATA"': "data", '"$OUT"': "out", '"$GPUS"': "8", '"$SLURM_NNODES"': "2"}
    words = [values.get(word, word) for word in command.group(1).replace("\\\n", " ").split()]
    config, out = parse_run("run", "", words)
    assert (config.hardware.devices, config.hardware.nodes, config.data.workers, str(out)) == (8, 2, 7, "out")
    nodes, gpus = (re.search(rf"#SBATCH --{key}=(\d+)", text) for key in ("nodes", "gpus-per-node"))
    assert nodes is not None
    assert gpus is not None
    assert (int(nodes.group(1)), int(gpus.group(1))) == (2, 8)

"""Several networks of one recipe, trained in one program: `config.num_seeds`.

Each of these members is the run that it would be alone, with a config, checkpoints, records and
events of its own, in a folder of the workdir that is a workdir, too.
"""

from pathlib import Path

from ml_collections import ConfigDict

FOLDER = "members"


def configs(config: ConfigDict) -> list[ConfigDict]:
    """For each member, the config of the single run that it is."""
    found = []
    for number in range(config.num_seeds):
        own = ConfigDict(config.to_dict())
        own.num_seeds, own.seed = 1, config.seed + number
        found.append(own)
    return found


def folder(workdir: Path, number: int) -> Path:
    """The workdir of a member."""
    return workdir / FOLDER / str(number)

"""requirements.lock: a version for whatever an extra brings in."""

import re
import tomllib
from importlib import metadata

from packaging.requirements import Requirement

from tests.conftest import ROOT

NOT_LOCKED = {"bench"}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(requirements):
    """Names of `requirements` and, as far as these are installed, of what they need in turn."""
    found, left = set(), [Requirement(text) for text in requirements]
    while left:
        requirement = left.pop()
        extras = {"", *requirement.extras}
        key = (plain(requirement.name), frozenset(extras))
        if key in found or key[0] == "cifar-jax":  # an extra that has others
            continue
        found.add(key)
        try:
            inner = map(Requirement, metadata.requires(requirement.name) or [])
        except metadata.PackageNotFoundError:
            continue
        left += [
            each
            for each in inner
            if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return {name for name, _ in found}


def test_the_lock_has_whatever_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].items()
    asked = [each for name, some in extras if name not in NOT_LOCKED for each in some]
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {plain(line.split("==")[0]) for line in lines if not line.startswith("#")}
    assert needed([*project["dependencies"], *asked]) <= locked

"""Beside pyproject.toml: an installed package has the recipes of configs/ within it."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # which finds them beside the package
            return
        folder = Path(self.build_lib, "cifar_jax", "configs")
        folder.mkdir(parents=True, exist_ok=True)
        for recipe in sorted(Path("configs").glob("*.py")):
            self.copy_file(str(recipe), str(folder / recipe.name))


setup(cmdclass={"build_py": WithRecipes})

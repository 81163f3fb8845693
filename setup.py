"""What pyproject.toml cannot say: the recipes of configs/ are a part of the package in a wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cifar_jax*"]), "cifar_jax.configs"],
    package_dir={"cifar_jax.configs": "configs"},
)

"""The environment before JAX starts: what the user has set stays, what jaxlib lacks is left out."""

import os

import pytest

from cifar_jax.devices import runtime


@pytest.fixture
def flags(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return monkeypatch


def test_the_flag_is_added_to_the_users_own(flags):
    flags.setenv("XLA_FLAGS", "--xla_dump_to=somewhere")
    runtime.start()
    first, second = os.environ["XLA_FLAGS"].split()
    assert first == "--xla_dump_to=somewhere"
    assert second.startswith("--xla_cpu_experimental_ynn_fusion_type=")


def test_what_the_user_has_set_stays(flags):
    flags.setenv("XLA_FLAGS", f"{runtime._CPU_FLAG}=SOMETHING")
    runtime.start()
    assert os.environ["XLA_FLAGS"] == f"{runtime._CPU_FLAG}=SOMETHING"


@pytest.mark.parametrize("part", ["_CPU_FLAG", "_CPU_VALUE"])
def test_a_jaxlib_that_does_not_know_the_flag_is_left_alone(flags, part):
    """XLA would end the process."""
    flags.setattr(runtime, part, "--xla_no_such_flag")
    runtime.start()
    assert "XLA_FLAGS" not in os.environ


def test_compilations_are_cached_where_the_user_wants(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # of the user: none
    runtime.start()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == ""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    runtime.start()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache/cifar_jax/compiled")


def test_switches_that_change_the_numbers_are_passed_over_with_a_line(monkeypatch, capsys):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    runtime.start()
    assert "JAX_ENABLE_X64" not in os.environ
    assert capsys.readouterr().err.startswith("JAX_ENABLE_X64=1 is ignored: ")


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")

    def nobody(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(runtime.Path, "expanduser", nobody)
    runtime.start()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ

"""The files for Slurm and Kubernetes: what must agree agrees, and what the batch job does after."""

import os
import re
import shlex
import subprocess

import pytest
import yaml

from configs import default
from tests.conftest import ROOT

SBATCH = ROOT / "launch" / "slurm.sbatch"
JOBSET = ROOT / "launch" / "jobset.yaml"


@pytest.fixture
def batch(tmp_path):
    """Runs the batch job, whose srun ends so: its exit code, what srun and scontrol were told."""

    def run(code, *flags, restarts=None):
        for name, end in (("srun", f"$([ -f main.py ] && echo {code})"), ("scontrol", 0)):
            (tmp_path / name).write_text(
                f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/{name}.said\nexit {end}\n'
            )
            (tmp_path / name).chmod(0o755)
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOME": "/home/user",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "17",
            "SLURM_CPUS_PER_TASK": "4",
        }
        if restarts is not None:
            environment["SLURM_RESTART_COUNT"] = str(restarts)
        done = subprocess.run(["bash", SBATCH, *flags], env=environment, cwd=tmp_path, timeout=60)
        said = [tmp_path / f"{name}.said" for name in ("srun", "scontrol")]
        return done.returncode, *(
            path.read_text().splitlines() if path.exists() else [] for path in said
        )

    return run


def fields(config, prefix="--config."):
    """Every field of a config as a flag."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def check_flags(command):
    """After main.py, every flag is known there, the recipe exists, and the cluster is found."""
    flags = dict(flag.split("=", 1) for flag in command[command.index("main.py") + 1 :])
    known = {"--workdir", "--config", *fields(default.get_config())}
    assert set(flags) <= known
    assert (ROOT / flags["--config"]).is_file()
    assert flags["--config.cluster"] == "auto"


def test_the_batch_job_parses_and_asks_for_what_it_relies_on():
    subprocess.run(["bash", "-n", SBATCH], check=True)
    lines = re.findall(r"^#SBATCH (.*)$", SBATCH.read_text(), re.M)
    options = dict(shlex.split(line)[0].removeprefix("--").partition("=")[::2] for line in lines)
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options
    assert "requeue" in options
    assert options["open-mode"] == "append"
    assert options["signal"] == "TERM@120"


def test_the_batch_job_hands_its_flags_on(batch):
    code, srun, requeued = batch(0, "--config.optim.learning_rate=0.05", "--config.data.dir=a b")
    assert (code, requeued) == (0, [])
    assert "--cpus-per-task=4" in srun
    assert srun[-2:] == ["--config.optim.learning_rate=0.05", "--config.data.dir=a b"]
    assert "--workdir=/home/user/runs/tutorial" in srun
    check_flags(srun)


@pytest.mark.parametrize("code", [1, 134, 137, 143])
@pytest.mark.parametrize("restarts", [None, 1, 19])
def test_the_batch_job_is_queued_again(batch, code, restarts):
    ended, _, requeued = batch(code, restarts=restarts)
    assert (ended, requeued) == (code, ["requeue", "17"])


@pytest.mark.parametrize(("code", "restarts"), [(0, None), (2, None), (3, None), (143, 20)])
def test_the_batch_job_comes_to_an_end(batch, code, restarts):
    ended, _, requeued = batch(code, restarts=restarts)
    assert (ended, requeued) == (code, [])


@pytest.fixture
def documents():
    loaded = {each["kind"]: each for each in yaml.safe_load_all(JOBSET.read_text())}
    assert set(loaded) == {
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "PersistentVolumeClaim",
        "JobSet",
    }
    return loaded


def test_the_names_of_the_jobset_agree(documents):
    names = {kind: each["metadata"]["name"] for kind, each in documents.items()}
    (namespace,) = {each["metadata"]["namespace"] for each in documents.values()}
    binding = documents["RoleBinding"]
    (subject,) = binding["subjects"]
    account = {"kind": "ServiceAccount", "name": names["ServiceAccount"], "namespace": namespace}
    assert subject == account
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", names["Role"])
    (job,) = documents["JobSet"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == names["ServiceAccount"]
    claims = [each["persistentVolumeClaim"] for each in pod["volumes"] if each["name"] == "shared"]
    assert claims == [{"claimName": names["PersistentVolumeClaim"]}]
    (container,) = pod["containers"]
    volumes = {each["name"] for each in pod["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == volumes
    assert "ReadWriteMany" in documents["PersistentVolumeClaim"]["spec"]["accessModes"]


def test_the_role_allows_what_jax_asks(documents):
    allowed = {
        (resource, verb)
        for rule in documents["Role"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed == {("pods", "list"), ("jobs", "get")}


def test_the_jobs_processes_are_one_run_and_start_again_together(documents):
    spec = documents["JobSet"]["spec"]
    assert spec["network"]["enableDNSHostnames"] is True
    assert spec["failurePolicy"]["maxRestarts"] > 0
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert replicated["replicas"] == 1
    assert job["parallelism"] == job["completions"] > 1
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 3]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_the_jobs_command_is_one_that_main_knows(documents):
    (replicated,) = documents["JobSet"]["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    check_flags(container["command"])
    workdir = container["command"][3].partition("=")[2]
    for path in (workdir, *(each["value"] for each in container["env"])):
        assert path.startswith("/shared/")
    assert "/shared" in {each["mountPath"] for each in container["volumeMounts"]}

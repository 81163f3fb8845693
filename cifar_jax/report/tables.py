"""The report's tables: how each run ended, and in which settings runs differ."""

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cifar_jax import config as config_lib
from cifar_jax.report.history import History
from cifar_jax.report.runs import Run
from cifar_jax.telemetry import predictions

UNKNOWN = "–"


def last_evaluation(run: Run, history: History) -> Mapping[str, Any]:
    """The last that was recorded, if possible of the EMA; without any, the report's own."""
    found = [record for record in history.evals if "accuracy" in record] or history.evals
    if found or not run.evaluation:
        return found[-1] if found else {}
    own = run.evaluation.predictions
    return {
        "step": run.evaluation.step,
        "accuracy": own.accuracy,
        "cross_entropy": float(own.cross_entropy.mean()),
        "calibration_error": predictions.calibration(own).error,
    }


def final(run: Run, history: History) -> dict[str, str]:
    """What is said first of a run, by name; the same names for every run."""
    last = last_evaluation(run, history)
    config = flat(run.record["config"])
    steps = max(history.steps, run.evaluation.step if run.evaluation else 0)
    images = run.record["dataset"]["sizes"]["train"]
    epochs = steps * _positive(config.get("batch_size")) / images
    return {
        "run": run.name,
        "steps": f"{steps:,}",
        "epochs": number(epochs, 1),
        "accuracy, EMA": number(last.get("accuracy")),
        "accuracy, raw": number(last.get("accuracy_raw")),
        "accuracy, validation": _best_validation(history),
        "cross-entropy": number(last.get("cross_entropy")),
        "calibration error": number(last.get("calibration_error")),
        "evaluated at step": f"{last['step']:,}" if last else UNKNOWN,
        "training time": _duration(history.wall[-1] if len(history.wall) else math.nan),
        "device": run.record.get("device") or UNKNOWN,
        "jax": run.record.get("versions", {}).get("jax", UNKNOWN),
    }


def _best_validation(history: History) -> str:
    found = [r for r in history.validation if math.isfinite(r.get("accuracy", math.nan))]
    best = max(found, key=lambda r: r["accuracy"], default=None)
    return f"{number(best['accuracy'])} at step {best['step']:,}" if best else UNKNOWN


def _positive(value: Any) -> float:
    """The number, or NaN for what is none."""
    return float(value) if type(value) in (int, float) and value > 0 else math.nan


def without_unknown(lines: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The columns in which some line has a value."""
    known = [name for name in lines[0] if any(line[name] != UNKNOWN for line in lines)]
    return [{name: line[name] for name in known} for line in lines]


def number(value: float | None, digits: int = 4) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds))) if math.isfinite(seconds) else UNKNOWN


def flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All fields by their path; lists, as JSON has them, become tuples, as configs have them."""
    flat = config_lib.flat(dict(fields)).items()
    return {path: tuple(value) if isinstance(value, list) else value for path, value in flat}


def differences(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The fields that differ, with each run's value."""
    configs = {run.name: flat(run.record["config"]) for run in runs}
    lines = []
    for path in dict.fromkeys(path for config in configs.values() for path in config):
        values = {name: str(config.get(path, UNKNOWN)) for name, config in configs.items()}
        if len(set(values.values())) > 1:
            lines.append({"field": path} | values)
    return lines

"""How fast this project is beside PyTorch and TensorFlow, on the CPU of this machine.

    pip install -e '.[bench]'
    python -m benchmarks.compare

`task.py` and `airbench_task.py` say what is computed, and the former what counts as the same
result; `jax_cnn.py`, `torch_cnn.py`, `torch_airbench.py` and `tensorflow_cnn.py` compute it;
`worker.py` gives each its own process; `whole_program.py` times `main.py`; `report.py` makes the
table and the JSON; `compare.py` runs it all.
"""

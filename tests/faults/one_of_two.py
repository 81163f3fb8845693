"""main.py for launch/local.py; process $FAULTY runs behind the command $BEFORE.

As of `prlimit --fsize=4096`, or `env LD_PRELOAD=clock.so`.
"""

import os
import shlex
import sys
from pathlib import Path

command = [sys.executable, str(Path(__file__).parents[2] / "main.py"), *sys.argv[1:]]
if f"--process_id={os.environ['FAULTY']}" in sys.argv:
    command = [*shlex.split(os.environ["BEFORE"]), *command]
os.execvp(command[0], command)

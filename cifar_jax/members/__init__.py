"""Several networks that train in one program: config.num_seeds, config.sweep.

Each of these members is the run that it would be alone, with a config, checkpoints, records and
events of its own, in a folder of the workdir that is a workdir, too.
"""

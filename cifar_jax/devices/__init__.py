"""The process before JAX starts, the devices it computes on, and the processes of a cluster."""

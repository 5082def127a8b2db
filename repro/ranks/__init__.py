"""The ranks: MPI and its start, NCCL, a watchdog over them, and the memory of their process."""

"""The ranks: MPI and NCCL, a watchdog over them, and the memory of their process."""

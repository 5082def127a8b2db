"""MPI engines for notebooks, notebooks that are checked and executed, and what they show of a run."""

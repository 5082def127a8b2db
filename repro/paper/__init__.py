"""Everything specific to this paper: its runs, its tables and figures, its report."""

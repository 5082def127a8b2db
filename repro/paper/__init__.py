"""What belongs to this paper alone: its runs, its tables and figures, its report."""

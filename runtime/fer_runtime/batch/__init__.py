"""A folder run as a job: its sources, its rows and how an interrupted run continues."""
